// The cosines and sines of rotary positions (Su et al. 2021), in the layout of KernelTable::rope.
//
// Computed in double with +, -, * and / alone, which every CPU rounds alike. The C library's pow,
// cos and sin are not that: glibc's differ in the last bit with and without FMA, and others differ
// from glibc, so that whether two machines agree would hang on the rounding to float.
#pragma once

#include <vector>

#include "base/buffer.h"

namespace pyllama2c {

class RotaryTables {
  public:
    // Pair i of a head turns by theta^(-2i / head_size) radians from one position to the next.
    RotaryTables(double theta, int head_size, int max_positions);

    // Makes positions 0 .. n - 1 ready.
    void fill(int n);

    const float* cos(int position) const { return row(cos_, position); }  // [head_size] (c, c)
    const float* sin(int position) const { return row(sin_, position); }  // [head_size] (-s, s)

  private:
    struct Turn {
        double cos, sin;
    };

    static Turn turn_by(double angle);
    const float* row(const Buffer<float>& table, int position) const {
        return table.data() + static_cast<size_t>(position) * head_size_;
    }

    int head_size_;
    int filled_ = 0;
    std::vector<Turn> steps_;   // [head_size / 2] from one position to the next
    std::vector<Turn> angles_;  // [head_size / 2] of position `filled_`
    Buffer<float> cos_, sin_;   // [max_positions][head_size]
};

}  // namespace pyllama2c
