// How long things took, as counts in buckets that grow by a quarter of an octave (19 %).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace pyllama2c {

struct Histogram {
    static constexpr int kBuckets = 100;
    static constexpr double kFirst = 10e-6;  // seconds: where bucket 1 begins; the last is endless
    static constexpr double kPerOctave = 4;

    std::array<uint64_t, kBuckets> counts{};

    void add(double seconds) {
        const double bucket = seconds > kFirst ? 1 + kPerOctave * std::log2(seconds / kFirst) : 0;
        ++counts[std::min(static_cast<int>(bucket), kBuckets - 1)];
    }
};

}  // namespace pyllama2c
