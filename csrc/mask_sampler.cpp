#include "mask_sampler.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.h"
#include "write_tokens.h"

namespace vjepa {
namespace {

// Exclusive prefix sums, the total last.
void set_offsets(const std::vector<int64_t>& lengths, std::vector<int64_t>& offsets) {
    offsets.assign(1, 0);
    for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
}

int64_t round_down(int64_t length, int64_t multiple) {
    return length < multiple ? length : length - length % multiple;
}

void reject_above(double found, double most, const char* what, const char* power) {
    if (found < most) return;
    throw std::invalid_argument(
        "sample ids: found " + std::to_string(static_cast<int64_t>(std::min(found, 0x1p62))) +
        what + ", expected under " + power + "; give fewer sample ids or a smaller truncate_group");
}

}  // namespace

void reject_unequal(const std::vector<int64_t>& seqlens, int64_t batch, const std::string& name) {
    for (auto first = seqlens.begin(); first != seqlens.end(); first += batch) {
        const auto [least, most] = std::minmax_element(first, first + batch);
        if (*least == *most) continue;
        throw std::invalid_argument(
            name + " tokens of spec " + std::to_string((first - seqlens.begin()) / batch) +
            ": found lengths from " + std::to_string(*least) + " to " + std::to_string(*most) +
            ", expected equal ones; read " + name + "_tokens with " + name +
            "_seqlens or use truncate='batch' within one truncation group");
    }
}

MaskSampler::MaskSampler(Settings settings) : settings_(std::move(settings)), first_variant_{0} {
    const Size& grid = settings_.grid;
    num_tokens_ = grid[0] * grid[1] * grid[2];
    mask_words_ = grid[0] * words_for(grid[1] * grid[2]);
    for (const Spec& spec : settings_.specs) {
        first_variant_.push_back(num_variants() + spec.variants.size());
    }
}

int64_t MaskSampler::group_size() const {
    return settings_.truncate == Truncate::kNone ? 1 : settings_.truncate_group;
}

// Lists the clips to draw: with truncation whole groups, of which a batch may have only a part.
void MaskSampler::list_clips(const int64_t* ids, int64_t batch, Workspace& w) const {
    const int64_t group = group_size();
    w.asked.resize(batch);
    w.groups.clear();
    w.drawn_ids.clear();
    for (int64_t i = 0; i < batch; ++i) {
        const int64_t own = ids[i] / group;
        if (w.groups.empty() || w.groups.back() != own) w.groups.push_back(own);
    }
    if (!std::is_sorted(w.groups.begin(), w.groups.end())) {
        std::sort(w.groups.begin(), w.groups.end());
        w.groups.erase(std::unique(w.groups.begin(), w.groups.end()), w.groups.end());
    }
    const double clips = static_cast<double>(w.groups.size()) * static_cast<double>(group);
    const double masks = clips * static_cast<double>(settings_.specs.size());
    reject_above(masks * static_cast<double>(mask_words_) * 64, 0x1p37,
                 " bits in the masks of one call", "2**37");
    int64_t at = 0;
    for (const int64_t own : w.groups) {
        for (int64_t i = 0; i < group; ++i) w.drawn_ids.push_back(own * group + i);
    }
    for (int64_t i = 0; i < batch; ++i) {
        const int64_t own = ids[i] / group;
        if (w.groups[at] != own) {
            at = std::lower_bound(w.groups.begin(), w.groups.end(), own) - w.groups.begin();
        }
        w.asked[i] = at * group + ids[i] % group;
    }
}

void MaskSampler::set_blocks(int64_t step, const Size* sizes, Workspace& w) const {
    const Size& grid = settings_.grid;
    const int64_t plane_words = words_for(grid[1] * grid[2]);
    w.block_sizes.assign(num_variants(), Size{0, 0, 0});
    w.block_planes.resize(num_variants() * plane_words);
    w.blocks.clear();
    for (const Spec& spec : settings_.specs) {
        for (const Variant& variant : spec.variants) {
            const int64_t index = w.blocks.size();
            Size& size = w.block_sizes[index];
            uint64_t* plane = &w.block_planes[index * plane_words];
            if (variant.kind == Kind::kBlocks) {
                size = sizes ? sizes[index] : draw_block_size(variant, grid, settings_.seed, step);
                set_block_plane(size, grid, plane);
            }
            w.blocks.push_back({size, plane});
        }
    }
}

void MaskSampler::draw_clips(Workspace& w) const {
    const int64_t clips = w.drawn_ids.size(), masks = settings_.specs.size() * clips;
    w.drawn.resize(masks);
    w.visible.resize(masks * mask_words_);
    const int64_t workers = count_workers(masks * num_tokens_, settings_.num_threads);
    parallel_for(masks, workers, [&](int64_t, int64_t i) {
        const int64_t m = i / clips, id = w.drawn_ids[i % clips];
        const Spec& spec = settings_.specs[m];
        const int64_t variant = draw_variant(spec, settings_.seed, m, id);
        w.drawn[i] =
            draw_mask(spec.variants[variant], settings_.grid, w.blocks[first_variant_[m] + variant],
                      settings_.seed, id, &w.visible[i * mask_words_]);
        w.drawn[i].variant = variant;
    });
}

void MaskSampler::reject_empty(const Workspace& w) const {
    const int64_t clips = w.drawn_ids.size();
    const auto empty = std::find_if(w.drawn.begin(), w.drawn.end(),
                                    [](const Drawn& drawn) { return drawn.context == 0; });
    if (empty == w.drawn.end()) return;
    const int64_t i = empty - w.drawn.begin(), m = i / clips;
    const Size& block = w.block_sizes[first_variant_[m] + empty->variant];
    throw std::invalid_argument(
        "found no context token for clip " + std::to_string(w.drawn_ids[i % clips]) + " in " +
        std::to_string(kMaxDraws) + " draws of mask spec " + std::to_string(m) + " (" +
        std::to_string(settings_.specs[m].variants[empty->variant].num_blocks) + " blocks of " +
        std::to_string(block[0]) + "x" + std::to_string(block[1]) + "x" + std::to_string(block[2]) +
        " tokens), expected at least one; make its blocks smaller or fewer");
}

// The lengths of each clip are its own or, with truncation, the smallest of its group.
void MaskSampler::set_lengths(Workspace& w) const {
    const int64_t group = group_size(), num_specs = settings_.specs.size();
    const int64_t clips = w.drawn_ids.size(), batch = w.asked.size();
    const int64_t num_groups = w.groups.size();
    w.shortest.assign(num_specs * num_groups, Lengths{num_tokens_, num_tokens_});
    for (int64_t m = 0; m < num_specs; ++m) {
        for (int64_t g = 0; g < num_groups; ++g) {
            Lengths& shortest = w.shortest[m * num_groups + g];
            for (int64_t i = 0; i < group; ++i) {
                const Drawn& drawn = w.drawn[m * clips + g * group + i];
                const auto& max_keep = settings_.specs[m].variants[drawn.variant].max_keep;
                const int64_t context = std::min(drawn.context, max_keep.value_or(num_tokens_));
                shortest.context = std::min(shortest.context, context);
                shortest.target = std::min(shortest.target, num_tokens_ - drawn.context);
            }
            shortest.context = round_down(shortest.context, settings_.round_to);
            shortest.target = round_down(shortest.target, settings_.round_to);
            if (settings_.complement == Complement::kTarget) {
                shortest.target = num_tokens_ - shortest.context;
            } else if (settings_.complement == Complement::kContext) {
                shortest.context = num_tokens_ - shortest.target;
            }
        }
    }
    w.context_seqlens.resize(num_specs * batch);
    w.target_seqlens.resize(num_specs * batch);
    for (int64_t m = 0; m < num_specs; ++m) {
        for (int64_t i = 0; i < batch; ++i) {
            const Lengths& shortest = w.shortest[m * num_groups + w.asked[i] / group];
            w.context_seqlens[m * batch + i] = shortest.context;
            w.target_seqlens[m * batch + i] = shortest.target;
        }
    }
    set_offsets(w.context_seqlens, w.context_offsets);
    set_offsets(w.target_seqlens, w.target_offsets);
}

void MaskSampler::draw(int64_t step, const int64_t* ids, int64_t batch, const Size* sizes,
                       Workspace& w) const {
    const double rows = static_cast<double>(batch) * static_cast<double>(settings_.specs.size()) *
                        static_cast<double>(num_tokens_);
    reject_above(rows, 0x1p31, " tokens in one call", "2**31");
    list_clips(ids, batch, w);
    set_blocks(step, sizes, w);
    draw_clips(w);
    reject_empty(w);
    set_lengths(w);
}

// A mask is written in one of three ways for each of its two sets: the first `length` tokens, a
// random subset of them (truncate "batch-random"), or the tokens that the other set lacks
// (complement).
void MaskSampler::write(Workspace& w, int64_t* context, int64_t* target) const {
    const int64_t batch = w.asked.size(), clips = w.drawn_ids.size();
    const int64_t masks = settings_.specs.size() * batch;
    const int64_t workers = count_workers(masks * num_tokens_, settings_.num_threads);
    const int64_t plane_tokens = settings_.grid[1] * settings_.grid[2] + kTokenChunk;
    const bool random_subset = settings_.truncate == Truncate::kBatchRandom;
    const int64_t clip_tokens = random_subset ? num_tokens_ : 0;  // scratch
    w.planes.resize(workers * plane_tokens);
    w.tokens.resize(workers * clip_tokens);
    w.chosen.resize(workers * words_for(clip_tokens));

    parallel_for(masks, workers, [&](int64_t worker, int64_t i) {
        const int64_t m = i / batch, clip = w.asked[i % batch];
        const Drawn& drawn = w.drawn[m * clips + clip];
        const Mask mask{settings_.grid, &w.visible[(m * clips + clip) * mask_words_],
                        drawn.one_plane, settings_.specs[m].variants[drawn.variant].context_frames};
        uint32_t* plane = &w.planes[worker * plane_tokens];
        int64_t* all = w.tokens.data() + worker * clip_tokens;
        uint64_t* chosen = w.chosen.data() + worker * words_for(clip_tokens);
        const int64_t context_length = w.context_seqlens[i], target_length = w.target_seqlens[i];
        int64_t* contexts = context + w.context_offsets[i];
        int64_t* targets = target + w.target_offsets[i];

        const auto truncate = [&](bool is_context, int64_t drawn_length, int64_t length,
                                  uint32_t stream, int64_t* out) {
            if (!random_subset || drawn_length == length) {
                write_first(mask, is_context, length, plane, out);
            } else {
                write_first(mask, is_context, drawn_length, plane, all);
                const PhiloxSequence random(settings_.seed, substream(stream, m),
                                            w.drawn_ids[clip]);
                write_subset(random, all, drawn_length, length, chosen, out);
            }
        };
        if (settings_.complement != Complement::kContext) {
            truncate(true, drawn.context, context_length, kStreamTruncateContext, contexts);
        }
        if (settings_.complement != Complement::kTarget) {
            truncate(false, num_tokens_ - drawn.context, target_length, kStreamTruncateTarget,
                     targets);
        }
        if (settings_.complement == Complement::kTarget) {
            write_others(contexts, context_length, num_tokens_, targets);
        } else if (settings_.complement == Complement::kContext) {
            write_others(targets, target_length, num_tokens_, contexts);
        }
    });
}

}  // namespace vjepa
