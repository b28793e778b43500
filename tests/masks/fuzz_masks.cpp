// Random specs, grids and batches through the C++ mask sampler, for a build with sanitizers:
// fuzz_masks CALLS SEED [short]. Tokens go to buffers of exactly their size, so a sanitizer sees a
// write past the end ("short": buffers lack one token, which a sanitizer must report). Exits with 1
// and prints the property if a mask violates one.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <stdexcept>
#include <vector>

#include "mask_bits.h"
#include "mask_sampler.h"

namespace {

std::atomic<int64_t> allocations{0};

std::mt19937_64 chance;

int64_t missing = 0;  // tokens that the buffers are short of

int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(chance);
}

double fraction(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(chance);
}

vjepa::Range range(double low, double high) {
    const double a = fraction(low, high), b = between(0, 2) ? fraction(low, high) : a;
    return {std::min(a, b), std::max(a, b)};
}

vjepa::Variant random_variant(const vjepa::Size& grid) {
    vjepa::Variant variant{};
    variant.kind = static_cast<vjepa::Kind>(between(0, 2));
    variant.part = static_cast<uint32_t>(between(0, (1 << 24) - 1));
    variant.context_frames = grid[0];
    const int64_t frame_tokens = grid[1] * grid[2];
    const int64_t tokens =
        variant.kind == vjepa::Kind::kTubes ? frame_tokens : grid[0] * frame_tokens;
    if (variant.kind != vjepa::Kind::kBlocks && tokens > 1) {
        variant.num_kept = between(1, tokens - 1);
        return variant;
    }
    variant.kind = vjepa::Kind::kBlocks;
    variant.num_blocks = between(1, between(0, 9) ? 6 : 40);
    variant.spatial_scale = range(0.001, variant.num_blocks > 3 ? 0.3 : 1.0);
    variant.temporal_scale = between(0, 1) ? vjepa::Range{1.0, 1.0} : range(0.001, 1.0);
    variant.aspect_ratio = range(0.05, 20.0);
    if (between(0, 2) == 0) variant.context_frames = between(1, grid[0]);
    if (between(0, 2) == 0) variant.max_keep = between(1, 2 * grid[0] * frame_tokens);
    return variant;
}

vjepa::Settings random_settings() {
    vjepa::Settings settings{};
    const int64_t side = between(0, 9) ? 16 : 70;
    settings.grid = {between(1, 9), between(1, side), between(1, side)};
    settings.seed = chance();
    settings.truncate = static_cast<vjepa::Truncate>(between(0, 2));
    settings.truncate_group = between(1, between(0, 9) ? 8 : 300);
    settings.round_to = between(0, 1) ? 1 : between(1, 40);
    settings.complement = static_cast<vjepa::Complement>(between(0, 2));
    settings.num_threads = static_cast<int>(between(0, 3));
    for (int64_t m = between(1, 4); m > 0; --m) {
        vjepa::Spec spec;
        for (int64_t c = between(0, 2) ? 1 : between(1, 4); c > 0; --c) {
            spec.variants.push_back(random_variant(settings.grid));
            spec.cumulative.push_back(fraction(0.0, 1.0));
        }
        std::sort(spec.cumulative.begin(), spec.cumulative.end());
        settings.specs.push_back(std::move(spec));
    }
    return settings;
}

void require(bool holds, const char* property) {
    if (holds) return;
    std::fprintf(stderr, "violated: %s\n", property);
    std::exit(1);
}

// Checks the context or the target tokens of all masks and marks them in `taken`.
void check_side(const std::vector<int64_t>& tokens, const std::vector<int64_t>& seqlens,
                const std::vector<int64_t>& offsets, int64_t num_tokens,
                std::vector<std::vector<char>>& taken) {
    require(offsets.front() == 0 && offsets.back() == static_cast<int64_t>(tokens.size()),
            "offsets run from 0 to the last token");
    for (size_t i = 0; i < seqlens.size(); ++i) {
        require(offsets[i + 1] - offsets[i] == seqlens[i], "offsets are those of the lengths");
        for (int64_t k = offsets[i]; k < offsets[i + 1]; ++k) {
            require(0 <= tokens[k] && tokens[k] < num_tokens, "tokens lie in the clip");
            require(k == offsets[i] || tokens[k - 1] < tokens[k], "tokens ascend");
            require(!taken[i][tokens[k]]++, "no token is context and target");
        }
    }
}

void run(const vjepa::MaskSampler& sampler, const std::vector<int64_t>& ids, int64_t step,
         const vjepa::Size* sizes, vjepa::Workspace& workspace) {
    const auto& settings = sampler.settings();
    const int64_t num_tokens = settings.grid[0] * settings.grid[1] * settings.grid[2];
    sampler.draw(step, ids.data(), ids.size(), sizes, workspace);
    std::vector<int64_t> context(workspace.context_offsets.back() - missing);
    std::vector<int64_t> target(workspace.target_offsets.back() - missing);
    sampler.write(workspace, context.data(), target.data());

    std::vector<std::vector<char>> taken(ids.size() * settings.specs.size(),
                                         std::vector<char>(num_tokens));
    check_side(context, workspace.context_seqlens, workspace.context_offsets, num_tokens, taken);
    check_side(target, workspace.target_seqlens, workspace.target_offsets, num_tokens, taken);
    for (const int64_t length : workspace.context_seqlens) require(length > 0, "some context");
    size_t index = 0;
    for (size_t m = 0; m < settings.specs.size(); ++m) {
        bool some_target = true;  // unless a block without tokens is replayed or drawn
        for (const auto& variant : settings.specs[m].variants) {
            const auto& size = workspace.block_sizes[index++];
            some_target &= variant.kind != vjepa::Kind::kBlocks || size[1] * size[2] > 0 ||
                           variant.context_frames < settings.grid[0];
        }
        for (size_t i = 0; i < ids.size() && some_target; ++i) {
            require(workspace.target_seqlens[m * ids.size() + i] > 0, "some target");
        }
    }
    if (settings.complement != vjepa::Complement::kNone) {
        for (const auto& clip : taken) {
            require(std::count(clip.begin(), clip.end(), 1) == num_tokens, "the clip is filled");
        }
    }
    // The same call again draws the same masks and, on one thread, allocates nothing.
    const auto first_context = context, first_target = target;
    const bool alone = settings.num_threads == 1;
    const int64_t before = allocations;
    sampler.draw(step, ids.data(), ids.size(), sizes, workspace);
    sampler.write(workspace, context.data(), target.data());
    require(!alone || allocations == before, "no allocation in steady state");
    require(context == first_context && target == first_target, "masks depend on no history");
}

}  // namespace

void* operator new(size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const int64_t least = std::atoll(argv[1]);
    chance.seed(std::strtoull(argv[2], nullptr, 10));
    missing = argc > 3;
    vjepa::Workspace workspace;
    int64_t calls = 0, rejected = 0;
    while (calls < least) {
        const vjepa::MaskSampler sampler(random_settings());
        const auto& grid = sampler.settings().grid;
        // A batch may need its whole truncation groups, and a clip 10,000 draws: limit the clips.
        const int64_t most = 3200 / sampler.settings().truncate_group + 1;
        for (int64_t repeat = between(1, 3); repeat > 0; --repeat, ++calls) {
            std::vector<int64_t> ids(between(1, std::min<int64_t>(between(0, 9) ? 8 : 400, most)));
            const int64_t last = between(0, 1) ? 100 : (int64_t{1} << 62) - 1;
            for (int64_t& id : ids) id = between(0, last);
            std::vector<vjepa::Size> sizes;
            if (between(0, 3) == 0) {
                for (int64_t i = 0; i < sampler.num_variants(); ++i) {
                    sizes.push_back(
                        {between(1, grid[0]), between(0, grid[1]), between(0, grid[2])});
                }
            }
            const int64_t step = between(0, std::numeric_limits<int64_t>::max());
            try {
                const vjepa::Size* given = sizes.empty() ? nullptr : sizes.data();
                run(sampler, ids, step, given, workspace);
            } catch (const std::invalid_argument&) {
                ++rejected;
            }
        }
    }
    std::printf("%lld calls, %lld rejected\n", static_cast<long long>(calls),
                static_cast<long long>(rejected));
}
