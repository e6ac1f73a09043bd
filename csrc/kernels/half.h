// IEEE 754 half precision to float and back, in integers: the same bits on every CPU. And bfloat16.
//
// Static, not inline: files that are compiled for different CPUs must not share one definition.
#pragma once

#include <stdint.h>
#include <string.h>

namespace pyllama2c {

[[maybe_unused]] static float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u;
    const uint32_t fraction = half & 0x3FFu;
    uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
    if (exponent == 31) bits |= 0x7F800000u;  // infinity, NaN
    float value;
    if (exponent == 0) {  // zero, subnormal
        value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to nearest, ties to even; what is too large becomes infinity.
[[maybe_unused]] static uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);   // NaN
    if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above
    if (bits < 0x38800000u) {
        // Below 2^-14: adding 0.5 puts the units of a subnormal half into the lowest bits, rounded.
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
    }
    const uint32_t odd = bits >> 13 & 1u;
    return static_cast<uint16_t>(sign | (bits - 0x38000000u + 0xFFFu + odd) >> 13);
}

// A bfloat16 is the upper half of a float.
[[maybe_unused]] static float bfloat16_to_float(uint16_t upper) {
    const uint32_t bits = static_cast<uint32_t>(upper) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace pyllama2c
