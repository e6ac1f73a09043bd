// A vector of 16 floats as two registers of AVX2, and what the ISAs that have these have in common
// of vector_kernels.h; avx2.cpp and avxvnni.cpp include it, and bring their own products of bytes.

struct Vec {
    __m256 lo, hi;  // lanes 0..7, 8..15
};

constexpr int kRowPanels = 4;   // 8 chains of latency 4 keep both FMA units busy
constexpr int kTilePanels = 1;  // 6 x 2 sums + 2 weights + 1 broadcast: 15 of 16 registers
constexpr int kTileRows = 6;
constexpr int kValuePanels = 1, kQueries = 1;

inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
inline Vec set1(float v) {
    const __m256 half = _mm256_set1_ps(v);
    return {half, half};
}
inline Vec set_halves(const float* two) { return {_mm256_set1_ps(two[0]), _mm256_set1_ps(two[1])}; }
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
inline Vec swap_halves(Vec v) { return {v.hi, v.lo}; }
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
inline Vec select_below(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
struct LowLanes {  // all ones in lanes below n
    explicit LowLanes(int n) {
        const __m256i count = _mm256_set1_epi32(n);
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        lo = _mm256_cmpgt_epi32(count, lane);
        hi = _mm256_cmpgt_epi32(count, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
    }
    __m256i lo, hi;
};
inline Vec low_lanes(Vec x, int n, Vec y) {
    const LowLanes low(n);
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_castsi256_ps(low.lo)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_castsi256_ps(low.hi))};
}
inline Vec load_low(const float* p, int n) {
    const LowLanes low(n);
    return {_mm256_maskload_ps(p, low.lo), _mm256_maskload_ps(p + 8, low.hi)};
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
inline bool has_nan(Vec v) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(v.lo, v.lo, _CMP_UNORD_Q),
                                           _mm256_cmp_ps(v.hi, v.hi, _CMP_UNORD_Q))) != 0;
}

inline Vec abs(Vec v) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, v.lo), _mm256_andnot_ps(sign, v.hi)};
}
inline __m256i load_256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Vec load_half(const uint16_t* p) {
    const __m256i halves = load_256(p);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline void store_half(uint16_t* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                     _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline void load_bf16(const uint16_t* p, Vec& even, Vec& odd) {
    const __m256i lo = load_256(p), hi = load_256(p + 16);
    const __m256i mask = _mm256_set1_epi32(-0x10000);
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)),
           _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}

struct Ints {
    __m256i lo, hi;
};
struct Bytes {
    __m256i lo, hi;
};
using Nibbles = Bytes;
using Quad = __m256i;

inline Ints set1_int(int v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline Ints add_int(Ints a, Ints b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline int sum_int(Ints v) {
    const __m256i eight = _mm256_add_epi32(v.lo, v.hi);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
    return _mm_cvtsi128_si32(four);
}
inline Vec to_float(Ints v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
inline void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    const __m256i lo = load_256(p), hi = load_256(p + 32);
    const __m256i mask = _mm256_set1_epi8(15);
    low = {_mm256_and_si256(lo, mask), _mm256_and_si256(hi, mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(lo, 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(hi, 4), mask)};
}
inline Quad set1_quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}
inline void store_fourth(Ints x, uint8_t* p, int i) {
    alignas(32) int32_t lanes[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.lo);
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 8), x.hi);
    for (int lane = 0; lane < 16; ++lane) p[4 * lane + i] = static_cast<uint8_t>(lanes[lane]);
}
inline __m256i whole_half(__m256 x) {
    const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
    return _mm256_and_si256(_mm256_cvtps_epi32(x), number);
}
inline Ints round_to_bytes(Vec x, int8_t* q) {
    const Ints whole = {whole_half(x.lo), whole_half(x.hi)};
    // packs works within 128-bit halves: quarters come out as 0 2 1 3
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole.lo, whole.hi), 0xD8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), bytes);
    return whole;
}
