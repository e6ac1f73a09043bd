// The contract between the transformer and the instruction sets.
//
// Every table computes the same bits. That works because *a SIMD lane owns an output*: weights are
// packed in panels of 16 output rows, so each output is one chain of fused multiply-adds over k in
// ascending order, however wide the registers are. Reductions use 16 lanes (element i goes to lane
// i % 16) and then one fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. scalar.cpp is the definition; the
// others must be equal to it to the last bit.
//
// "Padded" means: memory reaches up to the next multiple of 16 floats and holds zeros there.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace pyllama2c {

constexpr int kLanes = 16;        // outputs in a panel
constexpr int kBlockTokens = 16;  // tokens in a block of the KV cache: one panel of keys

constexpr int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One query of one head against the keys and values of its sequence so far.
struct Attention {
    const float* q;              // [head_size]
    const char* k_base;          // block 0's keys of this layer and head: [head_size][16] floats
    const char* v_base;          // block 0's values: [padded(head_size) / 16][16 tokens][16] floats
    size_t block_stride;         // bytes from one block to the next
    const int32_t* block_table;  // [ceil(n_tokens / 16)] block numbers
    int n_tokens;                // >= 1
    int head_size;
    float scale;    // 1 / sqrt(head_size)
    float* scores;  // scratch [padded(n_tokens)]
    float* out;     // [head_size]
};

struct KernelTable {
    const char* isa;

    // y[r][n] = (accumulate ? y[r][n] : 0) + sum over k of x[r][k] * w[n / 16][k][n % 16]
    // w: [panels][k][16]; x: rows at x_stride floats; y: rows at y_stride floats, 16 * panels wide.
    void (*matmul_f32)(const float* w, int k, int panels, const float* x, size_t x_stride, int rows,
                       float* y, size_t y_stride, bool accumulate);

    // y = x / sqrt(mean(x^2) + eps) * weight; all padded [n]
    void (*rmsnorm)(const float* x, const float* weight, int n, float eps, float* y);

    // Rotates neighbouring pairs (x[2i], x[2i+1]) of one head in place (Su et al. 2021).
    // cos: [n] each value twice; sin: [n] as (-s, +s) pairs.
    void (*rope)(float* x, const float* cos, const float* sin, int n);

    // h = silu(gate) * up. gate_up: [panels][gate 16, up 16], h: [panels][16]
    void (*swiglu)(const float* gate_up, int panels, float* h);

    // out = softmax(q K^T * scale) V, the sum over tokens in four chains (token % 4), then
    // (0 + 1) + (2 + 3).
    void (*attend_f32)(const Attention& a);

    // In place over n values; x has room for padded(n), the rest is overwritten with zeros.
    void (*softmax)(float* x, int n);
};

// The table called `isa` (see supported_isas()), or nullptr.
const KernelTable* find_kernels(const char* isa);

// The best table for this CPU, or the one that PYLLAMA2C_FORCE_ISA names.
// Throws ArgumentError where that variable names one that this CPU or build does not have.
const KernelTable& kernels();

// One per file.
extern const KernelTable scalar_kernels;
#if defined(__x86_64__)
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
#endif

}  // namespace pyllama2c
