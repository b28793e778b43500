#include "mask_sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "philox.h"

namespace vjepa {
namespace {

// Calls work(i) for every i in [0, count) from several threads; work must not throw.
template <typename Work>
void parallel_for(int64_t count, int num_threads, const Work& work) {
    constexpr int64_t kChunk = 16;  // clips: about the time that starting a thread takes
    std::atomic<int64_t> next{0};
    const auto run = [&] {
        for (int64_t begin; (begin = next.fetch_add(kChunk)) < count;) {
            for (int64_t i = begin; i < std::min(begin + kChunk, count); ++i) work(i);
        }
    };
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    const int64_t wanted =
        std::min<int64_t>(num_threads > 0 ? num_threads : cores, (count + kChunk - 1) / kChunk);
    std::vector<std::thread> threads;
    threads.reserve(std::max<int64_t>(wanted, 1));
    try {
        while (static_cast<int64_t>(threads.size()) + 1 < wanted) threads.emplace_back(run);
    } catch (const std::system_error&) {
        // No more threads to be had: those that started and this one do all the work.
    }
    run();
    for (auto& thread : threads) thread.join();
}

int64_t volume(const Size& size) { return size[0] * size[1] * size[2]; }

// The clips to draw: those asked for or, with truncation, their whole groups, of which a batch may
// hold only a part.
struct Clips {
    std::vector<int64_t> ids;    // each group's `group` ids side by side
    std::vector<int64_t> asked;  // where the i-th clip asked for is in `ids`
    int64_t group;               // 1: each clip stands alone
};

Clips list_clips(const std::vector<int64_t>& sample_ids, int64_t truncate_group) {
    Clips clips{{}, {}, std::max<int64_t>(truncate_group, 1)};
    std::vector<int64_t> groups;
    for (const int64_t id : sample_ids) groups.push_back(id / clips.group);
    std::sort(groups.begin(), groups.end());
    groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
    for (const int64_t group : groups) {
        for (int64_t i = 0; i < clips.group; ++i) clips.ids.push_back(group * clips.group + i);
    }
    for (const int64_t id : sample_ids) {
        const auto group = std::lower_bound(groups.begin(), groups.end(), id / clips.group);
        clips.asked.push_back((group - groups.begin()) * clips.group + id % clips.group);
    }
    return clips;
}

// Draws the blocks' places until the context isn't empty: is_context holds one 0 or 1 per token of
// the grid. Returns the number of context tokens, 0 after kMaxDraws empty ones.
int64_t draw_context(const MultiBlock& spec, const Size& grid, const Size& block, uint64_t seed,
                     uint32_t spec_index, int64_t sample_id, uint8_t* is_context) {
    const int64_t plane = grid[1] * grid[2];
    const int64_t kept_frames = std::max<int64_t>(
        1, static_cast<int64_t>(static_cast<double>(grid[0]) * spec.max_temporal_keep));
    PhiloxSequence random(seed, substream(kStreamBlockPlace, spec_index), sample_id);
    for (int attempt = 0; attempt < kMaxDraws; ++attempt) {
        std::fill_n(is_context, kept_frames * plane, uint8_t{1});
        std::fill_n(is_context + kept_frames * plane, (grid[0] - kept_frames) * plane, uint8_t{0});
        for (int64_t i = 0; i < spec.num_blocks; ++i) {
            const int64_t start = random.bounded(grid[0] - block[0] + 1);
            const int64_t top = random.bounded(grid[1] - block[1] + 1);
            const int64_t left = random.bounded(grid[2] - block[2] + 1);
            for (int64_t t = start; t < start + block[0]; ++t) {
                for (int64_t y = top; y < top + block[1]; ++y) {
                    std::fill_n(is_context + t * plane + y * grid[2] + left, block[2], uint8_t{0});
                }
            }
        }
        const int64_t count = std::count(is_context, is_context + kept_frames * plane, uint8_t{1});
        if (count > 0) return count;
    }
    return 0;
}

// Writes the first `length` tokens whose flag is `wanted`.
void write_tokens(const uint8_t* is_context, uint8_t wanted, int64_t length, int64_t* out) {
    for (int64_t token = 0, written = 0; written < length; ++token) {
        if (is_context[token] == wanted) out[written++] = token;
    }
}

// Exclusive prefix sums, the total last.
std::vector<int64_t> offsets(const std::vector<int64_t>& lengths) {
    std::vector<int64_t> sums{0};
    for (const int64_t length : lengths) sums.push_back(sums.back() + length);
    return sums;
}

}  // namespace

Size draw_block_size(const MultiBlock& spec, const Size& grid, uint64_t seed, uint32_t spec_index,
                     int64_t step) {
    PhiloxSequence random(seed, substream(kStreamBlockSize, spec_index), step);
    const auto between = [&](const Range& range) {
        return range.low + random.uniform() * (range.high - range.low);
    };
    const double temporal = between(spec.temporal_scale);
    const double spatial = between(spec.spatial_scale);
    const double aspect = between(spec.aspect_ratio);
    const double area = std::floor(static_cast<double>(grid[1] * grid[2]) * spatial);
    // nearbyint rounds halves to even, as Python's round does.
    const auto side = [](double x, int64_t limit) {
        return static_cast<int64_t>(std::min(std::nearbyint(x), static_cast<double>(limit)));
    };
    return {std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(grid[0]) * temporal)),
            side(std::sqrt(area * aspect), grid[1]), side(std::sqrt(area / aspect), grid[2])};
}

Masks sample(const Request& request) {
    const Size& grid = request.grid;
    const int64_t num_specs = request.specs.size(), batch = request.sample_ids.size();
    const int64_t num_tokens = volume(grid);
    const Clips clips = list_clips(request.sample_ids, request.truncate_group);
    const int64_t num_clips = clips.ids.size();

    Masks masks;
    masks.block_sizes = request.block_sizes;
    for (int64_t m = masks.block_sizes.size(); m < num_specs; ++m) {
        masks.block_sizes.push_back(
            draw_block_size(request.specs[m], grid, request.seed, m, request.step));
    }

    std::vector<uint8_t> is_context(num_specs * num_clips * num_tokens);
    std::vector<int64_t> counts(num_specs * num_clips);
    parallel_for(num_specs * num_clips, request.num_threads, [&](int64_t i) {
        const int64_t m = i / num_clips;
        counts[i] = draw_context(request.specs[m], grid, masks.block_sizes[m], request.seed, m,
                                 clips.ids[i % num_clips], &is_context[i * num_tokens]);
    });
    const auto empty = std::find(counts.begin(), counts.end(), 0);
    if (empty != counts.end()) {
        const int64_t i = empty - counts.begin(), m = i / num_clips;
        const Size& block = masks.block_sizes[m];
        throw std::invalid_argument(
            "found no context token for clip " + std::to_string(clips.ids[i % num_clips]) + " in " +
            std::to_string(kMaxDraws) + " draws of mask spec " + std::to_string(m) + " (" +
            std::to_string(request.specs[m].num_blocks) + " blocks of " + std::to_string(block[0]) +
            "x" + std::to_string(block[1]) + "x" + std::to_string(block[2]) +
            " tokens), expected at least one, make its blocks smaller or fewer");
    }

    // Lengths: a clip's own counts or, with truncation, the smallest of its group.
    const int64_t no_cap = std::numeric_limits<int64_t>::max();
    for (int64_t m = 0; m < num_specs; ++m) {
        const int64_t cap = request.specs[m].max_keep.value_or(no_cap);
        for (const int64_t clip : clips.asked) {
            const auto first = counts.begin() + m * num_clips + clip - clip % clips.group;
            const auto [least, most] = std::minmax_element(first, first + clips.group);
            masks.context_seqlens.push_back(std::min(*least, cap));
            masks.target_seqlens.push_back(num_tokens - *most);
        }
    }

    const auto context_offsets = offsets(masks.context_seqlens);
    const auto target_offsets = offsets(masks.target_seqlens);
    masks.context_tokens.resize(context_offsets.back());
    masks.target_tokens.resize(target_offsets.back());
    parallel_for(num_specs * batch, request.num_threads, [&](int64_t i) {
        const int64_t clip = i / batch * num_clips + clips.asked[i % batch];
        const uint8_t* flags = &is_context[clip * num_tokens];
        write_tokens(flags, 1, masks.context_seqlens[i],
                     masks.context_tokens.data() + context_offsets[i]);
        write_tokens(flags, 0, masks.target_seqlens[i],
                     masks.target_tokens.data() + target_offsets[i]);
    });
    return masks;
}

}  // namespace vjepa
