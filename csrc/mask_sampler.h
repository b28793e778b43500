// Multi-block masks of a batch of clips. Knows neither Python nor torch;
// vjepa_fast/masks/reference.py is its readable twin and agrees bit for bit.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vjepa {

// (time, height, width) in tokens: a grid or the size of a block.
using Size = std::array<int64_t, 3>;

struct Range {
    double low, high;
};

// Fields as in vjepa_fast/masks/specs.py.
struct MultiBlock {
    int64_t num_blocks;
    Range spatial_scale, temporal_scale, aspect_ratio;
    double max_temporal_keep;
    std::optional<int64_t> max_keep;
};

// Everything that the masks are a function of, but for num_threads, which changes no number.
struct Request {
    std::vector<MultiBlock> specs;
    Size grid;
    uint64_t seed;
    int64_t step;
    std::vector<int64_t> sample_ids;
    int64_t truncate_group;         // 0: nothing is truncated
    std::vector<Size> block_sizes;  // one per spec, or empty: drawn
    int num_threads;                // 0: one per core
};

// Tokens are spec-major, then clip, then ascending; lengths are [spec][clip].
struct Masks {
    std::vector<int64_t> context_tokens, context_seqlens;
    std::vector<int64_t> target_tokens, target_seqlens;
    std::vector<Size> block_sizes;
};

// A clip whose context is empty is drawn again, at most so often in all.
constexpr int kMaxDraws = 10'000;

Size draw_block_size(const MultiBlock& spec, const Size& grid, uint64_t seed, uint32_t spec_index,
                     int64_t step);

// Throws std::invalid_argument, naming the spec, when a clip's context stays empty.
Masks sample(const Request& request);

}  // namespace vjepa
