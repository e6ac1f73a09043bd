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

constexpr int kLanes = 16;         // outputs in a panel
constexpr int kQueriesAtOnce = 4;  // at most: of those that read the same keys and values
constexpr int kBlockTokens = 16;   // tokens in a block of the KV cache: one panel of keys

constexpr int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// How a matrix W (n outputs, k inputs) is packed: panels of 16 outputs, the last one filled up with
// zeros. Quantized activations are x ~ q * scale, one scale for each `group` inputs.
enum class Packing {
    kFloat32,   // [panels][k][16] floats
    kBFloat16,  // [panels][ceil(k / 2)][16][2] upper halves of floats
    kInt8,      // [panels][ceil(k / 4)][16][4] bytes, value + 128; float scales [panels][1 or
                // groups][16]
    kInt4,  // [panels][ceil(k / 8)][16][4] bytes: value + 8 of inputs 0..3 in the low, 4..7 in the
            // high half of each; half-precision scales [panels][groups][16], group 32
};

// Longest group: 255 * 127 * kMaxGroup stays below 2^31, so integer sums are exact in any order.
constexpr int kMaxGroup = 32768;
// Activations that are all closer to 0 than this become zeros: 127 / max|x| would overflow.
constexpr float kLeastQuantized = 1e-36f;
constexpr int kInt4Group = 32;
// The scales that quantize_int4 tries put a group's largest weight on these numbers of steps. (Ten
// times as many gain 0.6 % of the squared error.)
constexpr float kInt4Steps[] = {-6.5f, -7.0f, -7.5f, -8.0f, -8.5f, -9.0f, 7.0f, 7.5f};
constexpr float kLargestHalf = 65504.0f;
constexpr float kLargestInt4 = 6 * kLargestHalf;  // so that every scale it tries is a half

// y[r][n] = (accumulate ? y[r][n] : 0) + sum over k of x[r][k] * W[n][k]
//
// Float weights: one chain of fused multiply-adds over k. Quantized weights: the groups in order,
// sum = fma(float(exact integer sum), weight scale * activation scale, sum).
struct Matmul {
    const void* w;
    const void* w_next;    // what this thread will multiply with next, to be prefetched
    bool far;              // whether one row is worth prefetching for
    const void* w_scales;  // quantized
    size_t w_scale_step;   // from one group's scales to the next: 16, or 0 where a row has one
    int k;
    int panels;
    int group;        // quantized: inputs per group, a multiple of 16 or all of them
    const float* x;   // float weights: rows at x_stride floats
    const int8_t* q;  // quantized: rows at x_stride bytes, see quantize()
    size_t x_stride;
    const float* q_scales;  // [rows][groups]
    const int32_t* q_sums;  // [rows][groups]
    int rows;
    float* y;  // rows at y_stride floats, 16 * panels wide
    size_t y_stride;
    bool accumulate;
};

// How the KV cache keeps its numbers. Of a block and head,
//   floats: keys [head_size][16 tokens], values [padded(head_size) / 16][16 tokens][16], for heads
//          of up to 8 [16 tokens][8];
//   kInt8: packed like kInt8 weights, and a float for each token [16] behind:
//          keys [ceil(head_size / 4)][16 tokens][4], a matrix of 16 outputs, the scores;
//          values [padded(head_size) / 16][4][16][4 tokens], a matrix of head_size outputs.
enum class KvType { kFloat32, kFloat16, kInt8 };

// Half as many numbers to read, two tokens in a vector: for stories260K that is a tenth of its
// time.
constexpr bool narrow_values(int head_size) { return head_size <= kLanes / 2; }
constexpr int value_elements(int head_size) {
    return narrow_values(head_size) ? kLanes / 2 * kBlockTokens : padded(head_size) * kBlockTokens;
}
constexpr int quads(int n) { return (n + 3) / 4; }
constexpr int key8_elements(int head_size) { return 4 * quads(head_size) * kBlockTokens; }
constexpr int value8_elements(int head_size) { return padded(head_size) * kBlockTokens; }

constexpr size_t kv_element_bytes(KvType type) {
    return type == KvType::kFloat32 ? 4 : type == KvType::kFloat16 ? 2 : 1;
}
constexpr size_t kv_scale_bytes(KvType type) {
    return type == KvType::kInt8 ? kBlockTokens * sizeof(float) : 0;
}
// Bytes of one block's keys, or values, of one head.
constexpr size_t kv_key_bytes(KvType type, int head_size) {
    const int elements = type == KvType::kInt8 ? 4 * quads(head_size) : head_size;
    return kv_element_bytes(type) * elements * kBlockTokens + kv_scale_bytes(type);
}
constexpr size_t kv_value_bytes(KvType type, int head_size) {
    const int elements =
        type == KvType::kInt8 ? value8_elements(head_size) : value_elements(head_size);
    return kv_element_bytes(type) * elements + kv_scale_bytes(type);
}

// The queries of heads that share a head of keys and values, in rows of one sequence at positions
// one after another, against its keys and values so far.
struct Attention {
    const float* q;  // [n_rows][n_heads][head_size], rows at q_stride floats
    size_t q_stride;
    int n_rows;
    int n_heads;
    const char* k_base;          // block 0's keys of this layer and head
    const char* v_base;          // block 0's values
    size_t block_stride;         // bytes from one block to the next
    const int32_t* block_table;  // [ceil(n_tokens / 16)] block numbers
    // What comes next, to be prefetched.
    const char* k_next;
    const char* v_next;
    const int32_t* next_table;
    int next_blocks;  // 0: nothing
    int n_tokens;     // >= 1, of the first row; one more for each next, all ending in one block
    int head_size;
    float scale;    // 1 / sqrt(head_size)
    float* scores;  // scratch [kQueriesAtOnce][padded(n_tokens)]
    int8_t* q8;     // kInt8: scratch [kQueriesAtOnce][padded(head_size)]
    float* out;     // [n_rows][n_heads][head_size], rows at out_stride floats
    size_t out_stride;
};

struct KernelTable {
    const char* isa;

    void (*matmul_f32)(const Matmul& m);
    void (*matmul_bf16)(const Matmul& m);
    void (*matmul_q8)(const Matmul& m);
    void (*matmul_q4)(const Matmul& m);

    // q = round(x * 127 / max|x|) for each group of x, padded [n]; q is written up to padded(n).
    // scales: [groups] max|x| / 127; sums: [groups] of the q.
    void (*quantize)(const float* x, int n, int group, int8_t* q, float* scales, int32_t* sums);

    // One group of 16 rows of weights, x [32][16], as q [32][16], -8 .. 7, and half-precision
    // scales [16], with about the least squared error. Rounds NaN to -8.
    void (*quantize_int4)(const float* x, int8_t* q, uint16_t* scales);

    // y = x / sqrt(mean(x^2) + eps) * weight; all padded [n]
    void (*rmsnorm)(const float* x, const float* weight, int n, float eps, float* y);

    // Rotates neighbouring pairs (x[2i], x[2i+1]) of one head in place (Su et al. 2021).
    // cos: [n] each value twice; sin: [n] as (-s, +s) pairs.
    void (*rope)(float* x, const float* cos, const float* sin, int n);

    // h = silu(gate) * up. gate_up: [panels][gate 16, up 16], h: [panels][16]
    void (*swiglu)(const float* gate_up, int panels, float* h);

    // Stores one token's k or v [head_size] of one head at `slot` of its block. Int8: q = round(x *
    // 127 / max|x|), scale max|x| / 127. Different slots of a block may be stored to by several
    // threads at once.
    void (*store_key[3])(const float* k, int head_size, int slot, char* keys);      // by KvType
    void (*store_value[3])(const float* v, int head_size, int slot, char* values);  // by KvType

    // out = softmax(q K^T * scale) V: weights are exp(score - max), their sum divides at the end.
    // Floats: the sum over tokens in four chains (token % 4), then (0 + 1) + (2 + 3).
    // Int8: q becomes int8 as a stored key does, its scores are exact integers times (scale * q's
    // scale) * the key's scale. The weights, times the values' scales, become int8 block by block
    // in the same way; out = fma(float(exact integer sum), weights' scale, out) over the blocks.
    void (*attend[3])(const Attention& a);  // by KvType

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
extern const KernelTable avxvnni_kernels;
extern const KernelTable avx512_kernels;
#elif defined(__aarch64__)
extern const KernelTable neon_kernels;
#endif

}  // namespace pyllama2c
