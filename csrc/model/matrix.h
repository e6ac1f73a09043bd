// A packed weight matrix y = W x, as the kernels read it (see Packing in kernels/kernels.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace pyllama2c {

struct Matrix {
    Packing packing = Packing::kFloat32;
    int n = 0;                  // outputs
    int k = 0;                  // inputs
    int panels = 0;             // ceil(n / 16)
    int group = 0;              // quantized: inputs that share an activation scale
    bool group_scales = false;  // quantized: a weight scale per group too, not only per output
    char* data = nullptr;       // [panels] of panel_bytes()
    char* scales = nullptr;     // [panels] of panel_scale_bytes()

    bool quantized() const { return packing == Packing::kInt8 || packing == Packing::kInt4; }
    int groups() const { return quantized() ? (k + group - 1) / group : 0; }
    size_t panel_bytes() const;
    size_t panel_scale_bytes() const;

    // Writes one row of W, as the kernels see it, to out[k].
    void read_row(int row, float* out) const;
};

// Packs 16 rows of k floats (rows: [16][padded(k)], zeros in the padding, and scratch for one more)
// into a panel; the same bits with any kernels.
void pack_panel(const Matrix& to, int panel, float* rows, const KernelTable& kernels);

// The same from the int8 values of a v2 file, whose group is the matrix's: values [16][k], one
// after another at `stride` bytes, nullptr for a row of zeros; scales [16][groups] floats.
struct Int8Rows {
    const unsigned char* values[kLanes];
    const unsigned char* scales[kLanes];  // unaligned floats
};
void pack_int8_panel(const Matrix& to, int panel, const Int8Rows& rows);

}  // namespace pyllama2c
