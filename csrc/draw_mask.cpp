#include "draw_mask.h"

#include <algorithm>
#include <cmath>

#include "mask_bits.h"
#include "philox.h"

namespace vjepa {
namespace {

Drawn draw_blocks(const Variant& variant, const Size& grid, const Block& block, uint64_t seed,
                  int64_t sample_id, uint64_t* visible) {
    const int64_t frame_tokens = grid[1] * grid[2], num_words = words_for(frame_tokens);
    const bool empty = block.size[1] == 0 || block.size[2] == 0;
    const int64_t pattern_words =
        empty ? 0 : words_for((block.size[1] - 1) * grid[2] + block.size[2]);
    const bool one_plane = block.size[0] == grid[0];
    const int64_t planes = one_plane ? 1 : variant.context_frames;
    const auto bound = [&](int axis) {
        return static_cast<uint32_t>(grid[axis] - block.size[axis] + 1);
    };
    PhiloxSequence random(seed, substream(kStreamBlockPosition, variant.part), sample_id);
    for (int attempt = 0; attempt < kMaxDraws; ++attempt) {
        // first the union of the blocks, then its complement
        std::fill_n(visible, planes * num_words, uint64_t{0});
        for (int64_t i = 0; i < variant.num_blocks; ++i) {
            const int64_t start = random.bounded(bound(0));
            const int64_t top = random.bounded(bound(1));
            const int64_t left = random.bounded(bound(2));
            const int64_t end = one_plane ? 1 : std::min(start + block.size[0], planes);
            for (int64_t t = start; t < end; ++t) {
                or_shifted(block.plane, pattern_words, top * grid[2] + left,
                           visible + t * num_words);
            }
        }
        for (int64_t t = 0; t < planes; ++t) flip_all(visible + t * num_words, frame_tokens);
        const int64_t count = count_bits(visible, planes * num_words);
        if (count > 0) return {0, one_plane, one_plane ? count * variant.context_frames : count};
    }
    return {0, one_plane, 0};
}

Drawn draw_tokens(const Variant& variant, const Size& grid, uint64_t seed, int64_t sample_id,
                  uint64_t* visible) {
    PhiloxSequence random(seed, substream(kStreamKeptTokens, variant.part), sample_id);
    const bool tubes = variant.kind == Kind::kTubes;
    choose_subset(random, tubes ? 1 : grid[0], grid[1] * grid[2], variant.num_kept, visible);
    return {0, tubes, variant.num_kept * (tubes ? grid[0] : 1)};
}

}  // namespace

Size draw_block_size(const Variant& variant, const Size& grid, uint64_t seed, int64_t step) {
    PhiloxSequence random(seed, substream(kStreamBlockSize, variant.part), step);
    const auto between = [&](const Range& range) {
        return range.low + random.uniform() * (range.high - range.low);
    };
    const double temporal = between(variant.temporal_scale);
    const double spatial = between(variant.spatial_scale);
    const double aspect = between(variant.aspect_ratio);
    const double area = std::floor(static_cast<double>(grid[1] * grid[2]) * spatial);
    // nearbyint rounds halves to even, as Python's round does.
    const auto side = [](double x, int64_t limit) {
        return static_cast<int64_t>(std::min(std::nearbyint(x), static_cast<double>(limit)));
    };
    return {std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(grid[0]) * temporal)),
            side(std::sqrt(area * aspect), grid[1]), side(std::sqrt(area / aspect), grid[2])};
}

void set_block_plane(const Size& block, const Size& grid, uint64_t* plane) {
    std::fill_n(plane, words_for(grid[1] * grid[2]), uint64_t{0});
    for (int64_t y = 0; y < block[1]; ++y) {
        for (int64_t x = 0; x < block[2]; ++x) flip_bit(plane, y * grid[2] + x);
    }
}

int64_t draw_variant(const Spec& spec, uint64_t seed, uint32_t spec_index, int64_t sample_id) {
    const int64_t last = static_cast<int64_t>(spec.variants.size()) - 1;
    if (last == 0) return 0;
    const double draw =
        PhiloxSequence(seed, substream(kStreamMixture, spec_index), sample_id).uniform();
    int64_t index = 0;
    while (index < last && draw >= spec.cumulative[index]) ++index;
    return index;
}

Drawn draw_mask(const Variant& variant, const Size& grid, const Block& block, uint64_t seed,
                int64_t sample_id, uint64_t* visible) {
    return variant.kind == Kind::kBlocks
               ? draw_blocks(variant, grid, block, seed, sample_id, visible)
               : draw_tokens(variant, grid, seed, sample_id, visible);
}

}  // namespace vjepa
