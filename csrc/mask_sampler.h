// The masks of a batch of clips. Knows neither Python nor torch; vjepa_fast/masks/reference.py is
// its readable twin and agrees bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "draw_mask.h"
#include "mask_spec.h"

namespace vjepa {

// What one call needs. Kept from call to call, it allocates nothing once it has grown.
struct Workspace {
    std::vector<Size> block_sizes;  // one per strategy; zeros where it has no blocks
    std::vector<int64_t> context_seqlens, target_seqlens;  // [spec][clip]
    std::vector<int64_t> context_offsets, target_offsets;  // [spec * clips + 1]

    std::vector<int64_t> groups;     // which truncation groups the clips belong to, ascending
    std::vector<int64_t> drawn_ids;  // those groups' clips side by side, or the clips asked for
    std::vector<int64_t> asked;      // where the i-th clip asked for is in drawn_ids
    std::vector<uint64_t> block_planes;
    std::vector<Block> blocks;
    std::vector<Drawn> drawn;       // [spec][drawn id]
    std::vector<uint64_t> visible;  // [spec][drawn id][frame][word]
    std::vector<int64_t> shortest;  // [spec][group][context, target]
    std::vector<uint32_t> tokens;   // scratch of each worker: a frame's, a clip's
    std::vector<uint64_t> chosen;   // likewise: a clip's
};

class MaskSampler {
  public:
    explicit MaskSampler(Settings settings);

    const Settings& settings() const { return settings_; }
    int64_t num_strategies() const { return first_strategy_.back(); }

    // Draws the masks and works out their lengths. `sizes`: one per strategy, or null: drawn.
    // Throws std::invalid_argument, naming the spec, when a clip's context stays empty.
    void draw(int64_t step, const int64_t* ids, int64_t batch, const Size* sizes,
              Workspace& workspace) const;

    // Writes what `draw` drew: context_offsets.back() and target_offsets.back() tokens, spec-major,
    // then clip, then ascending.
    template <typename Token>
    void write(Workspace& workspace, Token* context, Token* target) const;

  private:
    int64_t group_size() const;
    void list_clips(const int64_t* ids, int64_t batch, Workspace& workspace) const;
    void set_blocks(int64_t step, const Size* sizes, Workspace& workspace) const;
    void draw_clips(Workspace& workspace) const;
    void refuse_empty(const Workspace& workspace) const;
    void set_lengths(Workspace& workspace) const;

    Settings settings_;
    std::vector<int64_t> first_strategy_;  // of each spec, and one past the last
    int64_t num_tokens_;
    int64_t mask_words_;  // a mask's planes
};

}  // namespace vjepa
