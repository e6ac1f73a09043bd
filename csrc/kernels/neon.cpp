// NEON with the dot product instructions (ARMv8.2): a vector of 16 floats is four registers.
#include <arm_neon.h>
#include <float.h>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

struct Vec {
    float32x4_t part[4];  // lanes 0..3, 4..7, 8..11, 12..15
};

// GCC keeps these tiles in the 32 registers; with a row more, it spills.
constexpr int kRowPanels = 2;   // 8 chains of latency 4 keep two FMA units busy
constexpr int kTilePanels = 1;  // 5 x 4 sums + 4 weights (bfloat16: 8) + 1 broadcast
constexpr int kTileRows = 5;
constexpr int kRowPanelsQ = 2;
constexpr int kTileRowsQ = 5, kTileRowsQG = 5;     // 5 x 4 sums, 4 weights, activations, 0x80
constexpr int kTilePanelsQ4 = 1, kTileRowsQ4 = 3;  // 3 x 4 sums, 8 weights, activations, 15
constexpr int kValuePanels = 1, kQueries = 1;
constexpr int kBias8 = 0;  // SDOT wants signed weights: load_bytes() takes the 128 off
constexpr int kBias4 = 8;

// The vector whose i-th part is part(i).
template <typename Part>
inline Vec each(Part part) {
    return {{part(0), part(1), part(2), part(3)}};
}

inline Vec load(const float* p) {
    return each([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, Vec v) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v.part[i]);
}
inline Vec set1(float v) {
    const float32x4_t four = vdupq_n_f32(v);
    return {{four, four, four, four}};
}
inline Vec set_halves(const float* two) {
    return each([=](int i) { return vdupq_n_f32(two[i / 2]); });
}
inline Vec zero() { return set1(0.0f); }
inline Vec add(Vec a, Vec b) {
    return each([=](int i) { return vaddq_f32(a.part[i], b.part[i]); });
}
inline Vec sub(Vec a, Vec b) {
    return each([=](int i) { return vsubq_f32(a.part[i], b.part[i]); });
}
inline Vec mul(Vec a, Vec b) {
    return each([=](int i) { return vmulq_f32(a.part[i], b.part[i]); });
}
inline Vec div(Vec a, Vec b) {
    return each([=](int i) { return vdivq_f32(a.part[i], b.part[i]); });
}
inline Vec min(Vec a, Vec b) {
    return each([=](int i) { return vminnmq_f32(a.part[i], b.part[i]); });
}
inline Vec max(Vec a, Vec b) {
    return each([=](int i) { return vmaxnmq_f32(a.part[i], b.part[i]); });
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return each([=](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
}
inline Vec swap_halves(Vec v) {
    return each([=](int i) { return v.part[i ^ 2]; });
}
inline Vec swap_pairs(Vec v) {
    return each([=](int i) { return vrev64q_f32(v.part[i]); });
}
inline Vec power_of_two(Vec shifted) {
    return each([=](int i) {
        const int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(shifted.part[i]), 23);
        return vreinterpretq_f32_s32(vaddq_s32(n, vdupq_n_s32(0x3F800000)));
    });
}
inline Vec keep_above(Vec x, Vec limit, Vec y) {
    return each([=](int i) {
        const uint32x4_t above = vcgeq_f32(x.part[i], limit.part[i]);
        return vreinterpretq_f32_u32(vandq_u32(above, vreinterpretq_u32_f32(y.part[i])));
    });
}
inline Vec select_below(Vec a, Vec b, Vec x, Vec y) {
    return each(
        [=](int i) { return vbslq_f32(vcltq_f32(a.part[i], b.part[i]), x.part[i], y.part[i]); });
}
inline Vec low_lanes(Vec x, int n, Vec y) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    const int32x4_t lane = vld1q_s32(lanes);
    return each([=](int i) {
        const uint32x4_t low = vcltq_s32(lane, vdupq_n_s32(n - 4 * i));
        return vbslq_f32(low, x.part[i], y.part[i]);
    });
}
inline Vec load_low(const float* p, int n) {
    float low[kLanes] = {};
    for (int i = 0; i < n; ++i) low[i] = p[i];
    return load(low);
}
inline float sum(Vec v) {
    const float32x4_t four = vaddq_f32(vaddq_f32(v.part[0], v.part[2]),   // lane i + lane i + 8
                                       vaddq_f32(v.part[1], v.part[3]));  // + 4
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float max_lane(Vec v) {
    return vmaxnmvq_f32(
        vmaxnmq_f32(vmaxnmq_f32(v.part[0], v.part[1]), vmaxnmq_f32(v.part[2], v.part[3])));
}
inline bool has_nan(Vec v) {  // FMAX keeps a NaN, unlike FMAXNM
    const float most =
        vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.part[0], v.part[1]), vmaxq_f32(v.part[2], v.part[3])));
    return most != most;
}

inline Vec abs(Vec v) {
    return each([=](int i) { return vabsq_f32(v.part[i]); });
}
inline Vec load_half(const uint16_t* p) {
    return each([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline void store_half(uint16_t* p, Vec v) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.part[i])));
}
inline void load_bf16(const uint16_t* p, Vec& even, Vec& odd) {
    const uint32x4_t mask = vdupq_n_u32(0xFFFF0000u);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
        even.part[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
        odd.part[i] = vreinterpretq_f32_u32(vandq_u32(pairs, mask));
    }
}

struct Ints {
    int32x4_t part[4];
};
struct Bytes {
    int8x16_t part[4];  // [16 lanes][4]
};
using Quad = int8x16_t;  // the same four bytes in each lane

inline Ints set1_int(int v) {
    const int32x4_t four = vdupq_n_s32(v);
    return {{four, four, four, four}};
}
inline Ints add_int(Ints a, Ints b) {
    return {{vaddq_s32(a.part[0], b.part[0]), vaddq_s32(a.part[1], b.part[1]),
             vaddq_s32(a.part[2], b.part[2]), vaddq_s32(a.part[3], b.part[3])}};
}
inline int sum_int(Ints v) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(v.part[0], v.part[1]), vaddq_s32(v.part[2], v.part[3])));
}
inline Vec to_float(Ints v) {
    return each([=](int i) { return vcvtq_f32_s32(v.part[i]); });
}
inline Bytes load_bytes(const uint8_t* p) {
    const uint8x16_t offset = vdupq_n_u8(0x80);
    Bytes weights;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        weights.part[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), offset));
    }
    return weights;
}
using Nibbles = Bytes;
using NibbleSums = Ints;
inline void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    const uint8x16_t mask = vdupq_n_u8(15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint8x16_t pairs = vld1q_u8(p + 16 * i);
        low.part[i] = vreinterpretq_s8_u8(vandq_u8(pairs, mask));
        high.part[i] = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
    }
}
inline Quad set1_quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline Ints dot(Ints sums, Bytes weights, Quad quad) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        sums.part[i] = vdotq_s32(sums.part[i], weights.part[i], quad);
    }
    return sums;
}
inline NibbleSums start_nibbles(int start) { return set1_int(start); }
inline Ints end_nibbles(NibbleSums sums, int) { return sums; }
inline Ints round_to_bytes(Vec x, int8_t* q) {
    Ints whole;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) whole.part[i] = vcvtnq_s32_f32(x.part[i]);  // ties to even
    const int16x8_t low = vmovn_high_s32(vmovn_s32(whole.part[0]), whole.part[1]);
    const int16x8_t high = vmovn_high_s32(vmovn_s32(whole.part[2]), whole.part[3]);
    vst1q_s8(q, vmovn_high_s16(vmovn_s16(low), high));
    return whole;
}
inline void store_fourth(Ints x, uint8_t* p, int i) {
    int32_t lanes[16];
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) vst1q_s32(lanes + 4 * part, x.part[part]);
    for (int lane = 0; lane < 16; ++lane) p[4 * lane + i] = static_cast<uint8_t>(lanes[lane]);
}

#include "kernels/vector_table.h"

}  // namespace

const KernelTable neon_kernels = vector_table("neon");

}  // namespace pyllama2c
