// Draws the mask of one clip as bits.
#pragma once

#include <cstdint>

#include "mask_spec.h"

namespace vjepa {

// Draws of a clip whose context is empty, before that is an error.
constexpr int kMaxDraws = 10'000;

// The blocks of one variant in one step: all have one size.
struct Block {
    Size size;
    const uint64_t* plane;  // cross-section of a block at row 0, column 0 of a frame
};

// Facts about a clip's mask. Its bits are one plane of words_for(height * width) words for all
// frames, or one plane per frame.
struct Drawn {
    int64_t variant;  // index into the variants of its spec
    bool one_plane;
    int64_t context;  // number of context tokens; 0 if no draw of kMaxDraws had any
};

Size draw_block_size(const Variant& variant, const Size& grid, uint64_t seed, int64_t step);

// Writes a block's cross-section into words_for(height * width) words.
void set_block_plane(const Size& block, const Size& grid, uint64_t* plane);

int64_t draw_variant(const Spec& spec, uint64_t seed, uint32_t spec_index, int64_t sample_id);

// Draws into `visible`, which has room for one plane per frame. `block` matters for kBlocks only;
// `variant` of the result is 0.
Drawn draw_mask(const Variant& variant, const Size& grid, const Block& block, uint64_t seed,
                int64_t sample_id, uint64_t* visible);

}  // namespace vjepa
