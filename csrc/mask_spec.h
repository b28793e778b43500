// What a mask sampler is told: strategies, mixtures of them, and how clips are cut to one length.
// Fields as in vjepa_fast/masks/specs.py, with all that depends on the grid worked out there.
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

// One way to mask a clip.
struct Strategy {
    Kind kind;
    uint32_t part;  // keeps its random words apart from other strategies'
    int64_t num_blocks;
    Range spatial_scale, temporal_scale, aspect_ratio;
    int64_t context_frames;  // frames from there on are never context
    int64_t num_kept;        // context places of a frame (tubes) or tokens of a clip (tokens)
    std::optional<int64_t> max_keep;
};

// The strategies that a spec chooses from, clip by clip; a plain spec has one.
struct Spec {
    std::vector<Strategy> choices;
    std::vector<double> cumulative;  // probability of this choice or an earlier one
};

enum class Truncate { kNone, kBatch, kBatchRandom };
enum class Complement { kNone, kTarget, kContext };

struct Settings {
    std::vector<Spec> specs;
    Size grid;
    uint64_t seed;
    Truncate truncate;
    int64_t truncate_group;
    int64_t round_to;  // 1: lengths stay as they are
    Complement complement;
    int num_threads;  // 0: one per core
};

}  // namespace vjepa
