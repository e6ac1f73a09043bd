// AVX2 + FMA: a vector of 16 floats is two registers.
#include <immintrin.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

struct Vec {
    __m256 lo, hi;  // lanes 0..7, 8..15
};

constexpr int kRowPanels = 4;   // 8 chains of latency 4 keep both FMA units busy
constexpr int kTilePanels = 1;  // 6 x 2 sums + 2 weights + 1 broadcast: 15 of 16 registers
constexpr int kTileRows = 6;
constexpr int kValuePanels = 1;

inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
inline Vec set1(float v) {
    const __m256 half = _mm256_set1_ps(v);
    return {half, half};
}
inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec swap_pairs(Vec v) {
    return {_mm256_permute_ps(v.lo, 0xB1), _mm256_permute_ps(v.hi, 0xB1)};
}
inline __m256 power_of_two_half(__m256 shifted) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3F800000)));
}
inline Vec power_of_two(Vec shifted) {
    return {power_of_two_half(shifted.lo), power_of_two_half(shifted.hi)};
}
inline Vec keep_above(Vec x, Vec limit, Vec y) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ), y.lo),
            _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ), y.hi)};
}
inline Vec low_lanes(Vec x, int n, Vec y) {
    const __m256i count = _mm256_set1_epi32(n);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i lane_hi = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
    const __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lane));
    const __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lane_hi));
    return {_mm256_blendv_ps(y.lo, x.lo, lo), _mm256_blendv_ps(y.hi, x.hi, hi)};
}
inline float sum(Vec v) {
    const __m256 eight = _mm256_add_ps(v.lo, v.hi);  // lane i + lane i + 8
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_permute_ps(four, 0x4E));  // + 2
    four = _mm_add_ps(four, _mm_permute_ps(four, 0xB1));  // + 1
    return _mm_cvtss_f32(four);
}
inline float max_lane(Vec v) {
    const __m256 eight = _mm256_max_ps(v.lo, v.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_permute_ps(four, 0x4E));
    four = _mm_max_ps(four, _mm_permute_ps(four, 0xB1));
    return _mm_cvtss_f32(four);
}

#include "kernels/vector_kernels.h"

}  // namespace

const KernelTable avx2_kernels = {
    "avx2", matmul_f32, rmsnorm, rope, swiglu, attend_f32, softmax,
};

}  // namespace pyllama2c
