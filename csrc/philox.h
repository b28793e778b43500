// Philox4x32-10 (Salmon et al., SC 2011). vjepa_fast/masks/philox.py documents the layout and gives
// the same numbers.
#pragma once

#include <array>
#include <cstdint>

namespace vjepa {

using Words = std::array<uint32_t, 4>;

inline Words philox4x32(Words counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53} * counter[0];
        const uint64_t p1 = uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
                   static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1],
                   static_cast<uint32_t>(p0)};
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return counter;
}

constexpr uint32_t kStreamBlockSize = 1;
constexpr uint32_t kStreamBlockPosition = 2;
constexpr uint32_t kStreamMixture = 7;
constexpr uint32_t kStreamKeptTokens = 8;
constexpr uint32_t kStreamTruncateContext = 9;
constexpr uint32_t kStreamTruncateTarget = 10;

constexpr uint32_t substream(uint32_t stream, uint32_t part) { return stream | part << 8; }

// Reads the words of one sequence (seed, stream, index) in order.
class PhiloxSequence {
  public:
    PhiloxSequence(uint64_t seed, uint32_t stream, uint64_t index)
        : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          counter_{0, stream, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)} {}

    uint32_t word() {
        if (next_ == 4) {
            words_ = philox4x32(counter_, key_);
            ++counter_[0];
            next_ = 0;
        }
        return words_[next_++];
    }

    // In [0, 1), exactly word / 2^32.
    double uniform() { return word() * 0x1p-32; }

    // Unbiased in [0, bound), bound > 0, by Lemire's multiplication; biased words are redrawn.
    uint32_t bounded(uint32_t bound) {
        uint64_t product = uint64_t{word()} * bound;
        if (static_cast<uint32_t>(product) < bound) {   // otherwise above the threshold anyway
            const uint32_t threshold = -bound % bound;  // 2^32 mod bound
            while (static_cast<uint32_t>(product) < threshold) product = uint64_t{word()} * bound;
        }
        return static_cast<uint32_t>(product >> 32);
    }

  private:
    std::array<uint32_t, 2> key_;
    Words counter_;
    Words words_{};
    int next_ = 4;
};

}  // namespace vjepa
