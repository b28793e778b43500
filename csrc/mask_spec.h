// The settings of a mask sampler: specs, their variants, and how clips are truncated to one length.
// Fields as in vjepa_fast/masks/specs.py, which works out everything that depends on the grid.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace vjepa {

// (time, height, width) in tokens: a grid or the size of a block.
using Size = std::array<int64_t, 3>;

struct Range {
    double low, high;
};

enum class Kind { kBlocks, kTubes, kTokens };

// One way to mask a clip: a spec that is no mixture, or one of a mixture's.
struct Variant {
    Kind kind;
    uint32_t part;  // part of the random streams, unique for each variant
    int64_t num_blocks;
    Range spatial_scale, temporal_scale, aspect_ratio;
    int64_t context_frames;  // frames after these are never context
    int64_t num_kept;        // context tokens of a frame (tubes) or of a clip (tokens)
    std::optional<int64_t> max_keep;
};

// A spec draws one of its variants for each clip; only a mixture has more than one.
struct Spec {
    std::vector<Variant> variants;
    std::vector<double> cumulative;  // cumulative probabilities of the variants
};

enum class Truncate { kNone, kBatch, kBatchRandom };
enum class Complement { kNone, kTarget, kContext };

struct Settings {
    std::vector<Spec> specs;
    Size grid;
    uint64_t seed;
    Truncate truncate;
    int64_t truncate_group;
    int64_t round_to;  // lengths are rounded down to a multiple; 1 leaves them
    Complement complement;
    int num_threads;  // 0: one per core
};

}  // namespace vjepa
