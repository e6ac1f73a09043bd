// llama2.c's random stream: xorshift64* (Marsaglia 2003, Vigna 2014).
#pragma once

#include <cstdint>

namespace pyllama2c {

class Rng {
  public:
    // A state of 0 would stay 0 for ever, so seed 0 starts from the golden ratio's bits instead;
    // every other seed starts where llama2.c starts.
    explicit Rng(uint64_t seed = 0) : state_(seed != 0 ? seed : 0x9E3779B97F4A7C15ull) {}

    // A generator in this state continues this one's stream.
    uint64_t state() const { return state_; }

    // Uniform in [0, 1), 24 bits.
    float next_float() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        const uint32_t bits = static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Dull) >> 32);
        return static_cast<float>(bits >> 8) / 16777216.0f;
    }

  private:
    uint64_t state_;
};

}  // namespace pyllama2c
