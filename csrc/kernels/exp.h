// The constants of the one exp() that every instruction set computes:
// exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by its Taylor series up to r^7
// (relative error below 2e-7). Below kExpMin it is exactly 0; above kExpMax it stays at exp(88).
#pragma once

namespace pyllama2c {

constexpr float kExpMin = -87.0f;
constexpr float kExpMax = 88.0f;
constexpr float kLog2E = 1.44269504088896341f;
// ln 2 in two pieces: the high one has trailing zeros, so n * kLn2Hi is exact.
constexpr float kLn2Hi = 0.693359375f;
constexpr float kLn2Lo = -2.12194440e-4f;
// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
constexpr float kRoundMagic = 12582912.0f;
constexpr float kExpSeries[8] = {1.0f,      1.0f,       1.0f / 2,   1.0f / 6,
                                 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};

}  // namespace pyllama2c
