// Sets of tokens as bits: 64 to a word, one plane per frame.
#pragma once

#include <algorithm>
#include <cstdint>

#include "philox.h"

namespace vjepa {

inline int64_t words_for(int64_t bits) { return (bits + 63) / 64; }

inline bool test_bit(const uint64_t* words, int64_t bit) { return words[bit / 64] >> bit % 64 & 1; }
inline void flip_bit(uint64_t* words, int64_t bit) { words[bit / 64] ^= uint64_t{1} << bit % 64; }

// Complements the first `bits` bits; those after them stay 0.
inline void flip_all(uint64_t* words, int64_t bits) {
    for (int64_t i = 0; i < words_for(bits); ++i) words[i] = ~words[i];
    if (bits % 64) words[bits / 64] &= (uint64_t{1} << bits % 64) - 1;
}

inline int64_t count_bits(const uint64_t* words, int64_t num_words) {
    int64_t count = 0;
    for (int64_t i = 0; i < num_words; ++i) count += __builtin_popcountll(words[i]);
    return count;
}

// ORs a pattern of num_words words, shifted up by `shift` bits, into a set. The last bit of the
// shifted pattern must be inside the set.
inline void or_shifted(const uint64_t* pattern, int64_t num_words, int64_t shift, uint64_t* set) {
    set += shift / 64;
    const int64_t up = shift % 64;
    uint64_t carry = 0;
    for (int64_t i = 0; i < num_words; ++i) {
        if (const uint64_t low = pattern[i] << up | carry) set[i] |= low;
        carry = up ? pattern[i] >> (64 - up) : 0;
    }
    if (carry) set[num_words] |= carry;
}

// The numbers of the set bits of every byte, ascending, then zeros.
struct ByteBits {
    uint32_t numbers[256][8]{};
    uint8_t counts[256]{};

    constexpr ByteBits() {
        for (int byte = 0; byte < 256; ++byte) {
            for (uint32_t bit = 0; bit < 8; ++bit) {
                if (byte >> bit & 1) numbers[byte][counts[byte]++] = bit;
            }
        }
    }
};
inline constexpr ByteBits kByteBits;

// Writes the numbers of a word's set bits, ascending, each plus `first`; returns one past the last.
// Each byte's numbers are written as eight, the surplus to be overwritten: `out` needs room for
// eight more.
inline uint32_t* list_bits(uint64_t word, int64_t first, uint32_t* out) {
    for (; word; word >>= 8, first += 8) {
        const uint32_t* numbers = kByteBits.numbers[word & 255];
        uint32_t eight[8];
        for (int i = 0; i < 8; ++i) eight[i] = numbers[i] + static_cast<uint32_t>(first);
        std::copy_n(eight, 8, out);
        out += kByteBits.counts[word & 255];
    }
    return out;
}

// A uniformly random subset of `chosen` of planes * plane_bits bits (Floyd's algorithm: Bentley,
// CACM 1987), drawn through the smaller of the subset and its complement. Each plane starts at a
// word.
inline void choose_subset(PhiloxSequence& random, int64_t planes, int64_t plane_bits,
                          int64_t chosen, uint64_t* words) {
    const int64_t count = planes * plane_bits, num_words = words_for(plane_bits);
    const auto plane_of = [&](int64_t bit) { return words + bit / plane_bits * num_words; };
    std::fill_n(words, planes * num_words, uint64_t{0});
    const int64_t drawn = std::min(chosen, count - chosen);
    for (int64_t last = count - drawn; last < count; ++last) {
        int64_t bit = random.bounded(static_cast<uint32_t>(last + 1));
        if (test_bit(plane_of(bit), bit % plane_bits)) bit = last;
        flip_bit(plane_of(bit), bit % plane_bits);
    }
    if (drawn == chosen) return;
    for (int64_t plane = 0; plane < planes; ++plane)
        flip_all(words + plane * num_words, plane_bits);
}

}  // namespace vjepa
