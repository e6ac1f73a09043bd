// AVX-512: a vector of 16 floats is one register. Needs F, BW, DQ, VL and VNNI.
#include <immintrin.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

using Vec = __m512;

constexpr int kRowPanels = 8;   // 8 chains of latency 4 keep both FMA units busy
constexpr int kTilePanels = 2;  // 2 x 12 sums + 2 weights + 1 broadcast: 27 of 32 registers
constexpr int kTileRows = 12;
constexpr int kValuePanels = 4;  // head size 64 in one pass

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec set1(float v) { return _mm512_set1_ps(v); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec swap_pairs(Vec v) { return _mm512_permute_ps(v, 0xB1); }
inline Vec power_of_two(Vec shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F800000)));
}
inline Vec keep_above(Vec x, Vec limit, Vec y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y);
}
inline Vec low_lanes(Vec x, int n, Vec y) {
    return _mm512_mask_mov_ps(y, static_cast<__mmask16>((1u << n) - 1u), x);
}
inline float sum(Vec v) {
    v = add(v, _mm512_shuffle_f32x4(v, v, 0x4E));  // lane i + lane i + 8
    v = add(v, _mm512_shuffle_f32x4(v, v, 0xB1));  // + 4
    v = add(v, _mm512_permute_ps(v, 0x4E));        // + 2
    v = add(v, _mm512_permute_ps(v, 0xB1));        // + 1
    return _mm512_cvtss_f32(v);
}
inline float max_lane(Vec v) { return _mm512_reduce_max_ps(v); }

#include "kernels/vector_kernels.h"

}  // namespace

const KernelTable avx512_kernels = {
    "avx512", matmul_f32, rmsnorm, rope, swiglu, attend_f32, softmax,
};

}  // namespace pyllama2c
