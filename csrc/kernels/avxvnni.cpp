// AVX2 + FMA + AVX-VNNI: the CPUs that have VNNI but no AVX-512.
#include <float.h>
#include <immintrin.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

#include "kernels/avx2_vector.h"

constexpr int kRowPanelsQ = 4;
constexpr int kTileRowsQ = 6;  // 6 x 2 sums, 2 weights, activations: 15 of 16 registers
constexpr int kTileRowsQG = 6;
constexpr int kTilePanelsQ4 = 1, kTileRowsQ4 = 4;  // 4 x 2 sums, 4 weights, 2 activations
constexpr int kBias8 = 128, kBias4 = 8;            // weights stay unsigned, as VPDPBUSD wants them

using NibbleSums = Ints;

inline Bytes load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }

// Assembly, as in avx512.cpp: with the intrinsic GCC 12 copies every sum.
inline __m256i dot_half(__m256i sums, __m256i weights, Quad quad) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(weights), "x"(quad));
    return sums;
}
inline Ints dot(Ints sums, Bytes weights, Quad quad) {
    return {dot_half(sums.lo, weights.lo, quad), dot_half(sums.hi, weights.hi, quad)};
}
inline NibbleSums start_nibbles(int start) { return set1_int(start); }
inline Ints end_nibbles(NibbleSums sums, int) { return sums; }

#include "kernels/vector_table.h"

}  // namespace

const KernelTable avxvnni_kernels = vector_table("avxvnni");

}  // namespace pyllama2c
