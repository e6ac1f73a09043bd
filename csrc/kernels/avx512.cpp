// AVX-512: a vector of 16 floats is one register. Needs F, BW, DQ, VL and VNNI.
#include <float.h>
#include <immintrin.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

using Vec = __m512;

constexpr int kRowPanels = 8;   // 8 chains of latency 4 keep both FMA units busy
constexpr int kTilePanels = 2;  // 2 x 12 sums + 2 weights + 1 broadcast: 27 of 32 registers
constexpr int kTileRows = 12;
constexpr int kRowPanelsQ = 4;
constexpr int kTileRowsQ = 12, kTileRowsQG = 6;    // G: with float sums beside the others
constexpr int kTilePanelsQ4 = 2, kTileRowsQ4 = 6;  // 12 integer and 12 float sums
constexpr int kValuePanels = 4;                    // head size 64 in one pass
constexpr int kQueries = 4;                        // 16 chains and a value
constexpr int kBias8 = 128, kBias4 = 8;            // weights stay unsigned, as VPDPBUSD wants them

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec set1(float v) { return _mm512_set1_ps(v); }
inline Vec set_halves(const float* two) {
    double both;
    __builtin_memcpy(&both, two, sizeof both);
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutevar_ps(_mm512_castpd_ps(_mm512_set1_pd(both)), lanes);
}
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec swap_halves(Vec v) { return _mm512_shuffle_f32x4(v, v, 0x4E); }
inline Vec swap_pairs(Vec v) { return _mm512_permute_ps(v, 0xB1); }
inline Vec power_of_two(Vec shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F800000)));
}
inline Vec keep_above(Vec x, Vec limit, Vec y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y);
}
inline Vec select_below(Vec a, Vec b, Vec x, Vec y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
inline Vec low_lanes(Vec x, int n, Vec y) {
    return _mm512_mask_mov_ps(y, static_cast<__mmask16>((1u << n) - 1u), x);
}
inline Vec load_low(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
inline float sum(Vec v) {
    v = add(v, _mm512_shuffle_f32x4(v, v, 0x4E));  // lane i + lane i + 8
    v = add(v, _mm512_shuffle_f32x4(v, v, 0xB1));  // + 4
    v = add(v, _mm512_permute_ps(v, 0x4E));        // + 2
    v = add(v, _mm512_permute_ps(v, 0xB1));        // + 1
    return _mm512_cvtss_f32(v);
}
inline float max_lane(Vec v) { return _mm512_reduce_max_ps(v); }
inline bool has_nan(Vec v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }

inline Vec abs(Vec v) { return _mm512_abs_ps(v); }
inline Vec load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void load_bf16(const uint16_t* p, Vec& even, Vec& odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
}

using Ints = __m512i;
using Bytes = __m512i;
using Nibbles = Bytes;
using NibbleSums = Ints;
using Quad = __m512i;

inline Ints set1_int(int v) { return _mm512_set1_epi32(v); }
inline Ints add_int(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline int sum_int(Ints v) { return _mm512_reduce_add_epi32(v); }
inline Vec to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    const __m512i pairs = _mm512_loadu_si512(p);
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(pairs, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
}
inline Quad set1_quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
inline Ints dot(Ints sums, Bytes weights, Quad quad) {
    // The intrinsic, in GCC 12, copies every sum to another register and back.
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(quad));
    return sums;
}
inline NibbleSums start_nibbles(int start) { return set1_int(start); }
inline Ints end_nibbles(NibbleSums sums, int) { return sums; }
inline Ints round_to_bytes(Vec x, int8_t* q) {
    const __m512i whole = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(whole));
    return whole;
}
inline void store_fourth(Ints x, uint8_t* p, int i) {
    const __m512i bytes = _mm512_sll_epi32(x, _mm_cvtsi32_si128(8 * i));
    _mm512_mask_storeu_epi8(p, 0x1111111111111111u << i, bytes);
}

#include "kernels/vector_table.h"

}  // namespace

const KernelTable avx512_kernels = vector_table("avx512");

}  // namespace pyllama2c
