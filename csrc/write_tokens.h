// Writes the bits of a drawn mask as token numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "draw_mask.h"
#include "mask_bits.h"
#include "philox.h"

// GCC with glibc compiles the function for AVX2 too; the loader takes what the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VJEPA_AVX2_TOO __attribute__((target_clones("avx2", "default")))
#else
#define VJEPA_AVX2_TOO
#endif

namespace vjepa {

struct Mask {
    const Size& grid;
    const uint64_t* visible;
    bool one_plane;
    int64_t context_frames;
};

// Tokens are written in chunks of this many: such loops have no remainder to branch for.
constexpr int64_t kTokenChunk = 8;

// Writes `count` tokens, each plus `first`, and up to a whole chunk more where that fits. `tokens`
// has kTokenChunk more; `out` has room for `room` >= count.
inline void write_shifted(const uint32_t* tokens, int64_t count, uint32_t first, int64_t room,
                          int64_t* out) {
    const int64_t chunks = std::min((count + kTokenChunk - 1) / kTokenChunk, room / kTokenChunk);
    const int64_t whole = chunks * kTokenChunk;
    for (int64_t i = 0; i < whole; ++i) out[i] = tokens[i] + first;
    for (int64_t i = whole; i < count; ++i) out[i] = tokens[i] + first;
}

// Writes the first `length` context tokens (or, without `context`, target tokens) in raster order.
// `plane` is scratch for the tokens of a frame and kTokenChunk more.
VJEPA_AVX2_TOO inline void write_first(const Mask& mask, bool context, int64_t length,
                                       uint32_t* plane, int64_t* out) {
    const int64_t frame_tokens = mask.grid[1] * mask.grid[2], num_words = words_for(frame_tokens);
    int64_t listed = 0, written = 0;
    const auto list = [&](const uint64_t* visible) {
        uint32_t* end = plane;
        for (int64_t i = 0; i < num_words; ++i) {
            const int64_t bits = std::min<int64_t>(64, frame_tokens - 64 * i);
            const uint64_t all = ~uint64_t{0} >> (64 - bits);
            end = list_bits(context ? visible[i] : ~visible[i] & all, 64 * i, end);
        }
        listed = end - plane;
    };
    for (int64_t t = 0; written < length; ++t) {
        if (t == mask.context_frames) {  // frames from here on are all target
            std::iota(plane, plane + frame_tokens, 0);
            listed = frame_tokens;
        } else if (t < mask.context_frames && (t == 0 || !mask.one_plane)) {
            list(mask.visible + t * num_words);
        }
        const int64_t count = std::min(listed, length - written);
        const uint32_t first = static_cast<uint32_t>(t * frame_tokens);
        write_shifted(plane, count, first, length - written, out + written);
        written += count;
    }
}

// Writes a random `length` of `count` tokens, in order. `chosen` is scratch for `count` bits.
inline void write_subset(PhiloxSequence random, const int64_t* tokens, int64_t count,
                         int64_t length, uint64_t* chosen, int64_t* out) {
    choose_subset(random, 1, count, length, chosen);
    for (int64_t i = 0; i < count; ++i) {
        if (test_bit(chosen, i)) *out++ = tokens[i];
    }
}

// Writes the tokens of 0 .. num_tokens-1 that are not in an ascending list.
inline void write_others(const int64_t* tokens, int64_t length, int64_t num_tokens, int64_t* out) {
    int64_t token = 0;
    for (int64_t i = 0; i < length; ++i, ++token) {
        while (token < tokens[i]) *out++ = token++;
    }
    while (token < num_tokens) *out++ = token++;
}

}  // namespace vjepa
