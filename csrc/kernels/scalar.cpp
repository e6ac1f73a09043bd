// The definition of every kernel: plain loops in the one canonical order. Slow and sure.
#include <cmath>
#include <cstring>

#include "kernels/exp.h"
#include "kernels/kernels.h"

namespace pyllama2c {
namespace {

float exp_one(float x) {
    if (!(x >= kExpMin)) return 0.0f;
    const float clamped = x < kExpMax ? x : kExpMax;
    const float shifted = std::fma(clamped, kLog2E, kRoundMagic);
    const float n = shifted - kRoundMagic;
    float r = std::fma(-n, kLn2Hi, clamped);
    r = std::fma(-n, kLn2Lo, r);
    float series = kExpSeries[7];
    for (int i = 6; i >= 0; --i) series = std::fma(series, r, kExpSeries[i]);
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3F800000u;  // the float 2^n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return series * power;
}

// The fixed tree over 16 lanes; overwrites them.
float tree_sum(float* lanes) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

void matmul_f32(const float* w, int k, int panels, const float* x, size_t x_stride, int rows,
                float* y, size_t y_stride, bool accumulate) {
    for (int p = 0; p < panels; ++p, w += static_cast<size_t>(k) * kLanes) {
        for (int r = 0; r < rows; ++r) {
            const float* in = x + r * x_stride;
            float* out = y + r * y_stride + p * kLanes;
            for (int lane = 0; lane < kLanes; ++lane) {
                float sum = 0.0f;
                for (int i = 0; i < k; ++i) sum = std::fma(in[i], w[i * kLanes + lane], sum);
                out[lane] = accumulate ? out[lane] + sum : sum;
            }
        }
    }
}

void rmsnorm(const float* x, const float* weight, int n, float eps, float* y) {
    float lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i % kLanes] = std::fma(x[i], x[i], lanes[i % kLanes]);
    const float scale = 1.0f / std::sqrt(tree_sum(lanes) / static_cast<float>(n) + eps);
    for (int i = 0; i < padded(n); ++i) y[i] = x[i] * scale * weight[i];
}

void rope(float* x, const float* cos, const float* sin, int n) {
    for (int i = 0; i < n; i += 2) {
        const float even = x[i], odd = x[i + 1];
        x[i] = std::fma(even, cos[i], odd * sin[i]);
        x[i + 1] = std::fma(odd, cos[i + 1], even * sin[i + 1]);
    }
}

void swiglu(const float* gate_up, int panels, float* h) {
    for (int p = 0; p < panels; ++p, gate_up += 2 * kLanes, h += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float gate = gate_up[lane];
            h[lane] = gate / (1.0f + exp_one(-gate)) * gate_up[kLanes + lane];
        }
    }
}

// x = exp(x - max(x)) over n values, zeros up to the padding; returns their sum.
float exp_and_sum(float* x, int n) {
    float max = x[0];
    for (int i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
    float lanes[kLanes] = {};
    for (int i = 0; i < padded(n); ++i) {
        x[i] = i < n ? exp_one(x[i] - max) : 0.0f;
        lanes[i % kLanes] += x[i];
    }
    return tree_sum(lanes);
}

void softmax(float* x, int n) {
    const float scale = 1.0f / exp_and_sum(x, n);
    for (int i = 0; i < padded(n); ++i) x[i] *= scale;
}

void attend_f32(const Attention& a) {
    for (int t = 0; t < a.n_tokens; ++t) {
        const size_t block = a.block_table[t / kBlockTokens] * a.block_stride;
        const float* keys = reinterpret_cast<const float*>(a.k_base + block) + t % kBlockTokens;
        float dot = 0.0f;
        for (int d = 0; d < a.head_size; ++d) {
            dot = std::fma(a.q[d], keys[d * kBlockTokens], dot);
        }
        a.scores[t] = dot * a.scale;
    }
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    for (int d = 0; d < a.head_size; ++d) {
        float chains[4] = {};
        for (int t = 0; t < a.n_tokens; ++t) {
            const size_t block = a.block_table[t / kBlockTokens] * a.block_stride;
            const float* values = reinterpret_cast<const float*>(a.v_base + block) +
                                  d / kLanes * kBlockTokens * kLanes;
            const float value = values[t % kBlockTokens * kLanes + d % kLanes];
            chains[t % 4] = std::fma(a.scores[t], value, chains[t % 4]);
        }
        a.out[d] = ((chains[0] + chains[1]) + (chains[2] + chains[3])) * scale;
    }
}

}  // namespace

const KernelTable scalar_kernels = {
    "scalar", matmul_f32, rmsnorm, rope, swiglu, attend_f32, softmax,
};

}  // namespace pyllama2c
