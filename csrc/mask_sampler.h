// Draws the masks of a batch of clips; free of Python and torch. vjepa_fast/masks/reference.py is
// its Python reference and agrees bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "draw_mask.h"
#include "mask_spec.h"

namespace vjepa {

// Numbers of tokens of one clip, or the smallest of a truncation group.
struct Lengths {
    int64_t context, target;
};

// Throws std::invalid_argument unless the clips of each spec have the same number of tokens.
// `seqlens`: [spec][clip]; `name`: "context" or "target".
void reject_unequal(const std::vector<int64_t>& seqlens, int64_t batch, const std::string& name);

// Memory of one call. Reused from call to call, it stops allocating once it has grown.
struct Workspace {
    std::vector<Size> block_sizes;                         // [variant]; zeros without blocks
    std::vector<int64_t> context_seqlens, target_seqlens;  // [spec][clip]
    std::vector<int64_t> context_offsets, target_offsets;  // [spec * clips + 1]

    std::vector<int64_t> groups;     // truncation groups of the clips, ascending
    std::vector<int64_t> drawn_ids;  // all clips of those groups
    std::vector<int64_t> asked;      // index into drawn_ids of each clip of the call
    std::vector<uint64_t> block_planes;
    std::vector<Block> blocks;
    std::vector<Drawn> drawn;       // [spec][drawn id]
    std::vector<uint64_t> visible;  // [spec][drawn id][frame][word]
    std::vector<Lengths> shortest;  // [spec][group]
    std::vector<uint32_t> planes;   // scratch per worker: tokens of a frame and a chunk more
    std::vector<int64_t> tokens;    // scratch per worker: tokens of a clip
    std::vector<uint64_t> chosen;   // scratch per worker: bits of a clip
};

class MaskSampler {
  public:
    explicit MaskSampler(Settings settings);

    const Settings& settings() const { return settings_; }
    int64_t num_variants() const { return first_variant_.back(); }

    // Draws the masks and computes their lengths. `sizes`: one per variant, or null to draw them.
    // Throws std::invalid_argument, naming the spec, if a clip's context stays empty.
    void draw(int64_t step, const int64_t* ids, int64_t batch, const Size* sizes,
              Workspace& workspace) const;

    // Writes the masks of the last `draw`: context_offsets.back() and target_offsets.back() tokens,
    // spec-major, then clip, then ascending.
    void write(Workspace& workspace, int64_t* context, int64_t* target) const;

  private:
    int64_t group_size() const;
    void list_clips(const int64_t* ids, int64_t batch, Workspace& workspace) const;
    void set_blocks(int64_t step, const Size* sizes, Workspace& workspace) const;
    void draw_clips(Workspace& workspace) const;
    void reject_empty(const Workspace& workspace) const;
    void set_lengths(Workspace& workspace) const;

    Settings settings_;
    std::vector<int64_t> first_variant_;  // [spec + 1]: index of its first variant
    int64_t num_tokens_;
    int64_t mask_words_;  // words of one plane per frame
};

}  // namespace vjepa
