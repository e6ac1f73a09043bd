// AVX2 + FMA, without VNNI.
#include <float.h>
#include <immintrin.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

#include "kernels/avx2_vector.h"

constexpr int kRowPanelsQ = 2;
constexpr int kTileRowsQ = 4;  // 4 x 2 sums, 2 weights twice, activations, ones, 1 product
constexpr int kTileRowsQG = 4;
constexpr int kTilePanelsQ4 = 1, kTileRowsQ4 = 4;
constexpr int kBias8 = 0, kBias4 = 8;

// VPMADDUBSW multiplies unsigned bytes by signed ones and adds two products, in 16
// bits. Of weights of int8 the absolute values are multiplied, by activations that take over their
// signs: 2 * 128 * 127 fits. Of int4 the values + 8 are multiplied as they are, and 16 bits hold
// the sum of a whole group.
struct NibbleSums {
    __m256i lo, hi;  // 8 lanes of two sums of 16 bits
};
static_assert(kInt4Group / 4 * 2 * 15 * 127 < 32768);

inline Bytes load_bytes(const uint8_t* p) {
    const __m256i offset = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(load_256(p), offset), _mm256_xor_si256(load_256(p + 32), offset)};
}

// Written as assembly because GCC 12 else computes the products of all rows before it adds the
// first, and has no registers left for the sums.
inline __m256i add_words(__m256i sums, __m256i words) {
    asm volatile("vpaddw %1, %0, %0" : "+x"(sums) : "x"(words));
    return sums;
}
inline __m256i add_pairs(__m256i sums, __m256i words) {
    const __m256i pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
    asm volatile("vpaddd %1, %0, %0" : "+x"(sums) : "x"(pairs));
    return sums;
}
inline __m256i dot_half(__m256i sums, __m256i weights, Quad quad) {
    const __m256i signed_quad = _mm256_sign_epi8(quad, weights);
    return add_pairs(sums, _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_quad));
}
inline Ints dot(Ints sums, Bytes weights, Quad quad) {
    return {dot_half(sums.lo, weights.lo, quad), dot_half(sums.hi, weights.hi, quad)};
}
inline NibbleSums start_nibbles(int) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline NibbleSums dot(NibbleSums sums, Nibbles weights, Quad quad) {
    return {add_words(sums.lo, _mm256_maddubs_epi16(weights.lo, quad)),
            add_words(sums.hi, _mm256_maddubs_epi16(weights.hi, quad))};
}
inline Ints end_nibbles(NibbleSums sums, int start) {
    const __m256i from = _mm256_set1_epi32(start);
    return {add_pairs(from, sums.lo), add_pairs(from, sums.hi)};
}

#include "kernels/vector_table.h"

}  // namespace

const KernelTable avx2_kernels = vector_table("avx2");

}  // namespace pyllama2c
