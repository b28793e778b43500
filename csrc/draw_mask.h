// One clip's mask, drawn as bits.
#pragma once

#include <cstdint>

#include "mask_spec.h"

namespace vjepa {

// A clip whose context is empty is drawn again, at most so often in all.
constexpr int kMaxDraws = 10'000;

// What a step's blocks of one strategy have in common.
struct Block {
    Size size;
    const uint64_t* plane;  // its cross-section at the frame's first row and column
};

// A clip's visible tokens: one plane of words_for(height * width) words, the same for every frame,
// or one plane a frame.
struct Drawn {
    int64_t choice;  // the strategy, out of its spec's
    bool one_plane;
    int64_t context;  // context tokens; 0: none in kMaxDraws draws
};

Size draw_block_size(const Strategy& strategy, const Size& grid, uint64_t seed, int64_t step);

// Writes a block's cross-section into words_for(height * width) words.
void set_block_plane(const Size& block, const Size& grid, uint64_t* plane);

int64_t draw_choice(const Spec& spec, uint64_t seed, uint32_t spec_index, int64_t sample_id);

// Draws into `visible`, which has room for a plane a frame. `block` plays a part in kBlocks alone;
// the result's `choice` is left at 0.
Drawn draw_mask(const Strategy& strategy, const Size& grid, const Block& block, uint64_t seed,
                int64_t sample_id, uint64_t* visible);

}  // namespace vjepa
