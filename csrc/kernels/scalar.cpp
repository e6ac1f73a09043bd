// The definition of every kernel: plain loops in the one canonical order. Slow and sure.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernels/exp.h"
#include "kernels/half.h"
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

// Calls output(r, n) for every output and stores what it returns.
template <typename Output>
void for_each_output(const Matmul& m, Output output) {
    for (int r = 0; r < m.rows; ++r) {
        for (int n = 0; n < m.panels * kLanes; ++n) {
            float& y = m.y[r * m.y_stride + n];
            const float sum = output(r, n);
            y = m.accumulate ? y + sum : sum;
        }
    }
}

void matmul_f32(const Matmul& m) {
    const float* w = static_cast<const float*>(m.w);
    for_each_output(m, [&](int r, int n) {
        const float* panel = w + static_cast<size_t>(n / kLanes) * m.k * kLanes;
        float sum = 0.0f;
        for (int i = 0; i < m.k; ++i) {
            sum = std::fma(m.x[r * m.x_stride + i], panel[i * kLanes + n % kLanes], sum);
        }
        return sum;
    });
}

void matmul_bf16(const Matmul& m) {
    const uint16_t* w = static_cast<const uint16_t*>(m.w);
    for_each_output(m, [&](int r, int n) {
        const uint16_t* panel = w + static_cast<size_t>(n / kLanes) * ((m.k + 1) / 2) * 2 * kLanes;
        float sum = 0.0f;
        for (int i = 0; i < m.k; ++i) {
            const uint16_t weight = panel[(i / 2 * kLanes + n % kLanes) * 2 + i % 2];
            sum = std::fma(m.x[r * m.x_stride + i], bfloat16_to_float(weight), sum);
        }
        return sum;
    });
}

// weight(n, i) is the integer behind W[n][i], scale(n, group) what a step of it is worth.
template <typename Weight, typename Scale>
void matmul_quantized(const Matmul& m, Weight weight, Scale scale) {
    const int groups = (m.k + m.group - 1) / m.group;
    for_each_output(m, [&](int r, int n) {
        float sum = 0.0f;
        for (int g = 0; g < groups; ++g) {
            const int end = m.k < (g + 1) * m.group ? m.k : (g + 1) * m.group;
            int32_t dot = 0;
            for (int i = g * m.group; i < end; ++i) dot += weight(n, i) * m.q[r * m.x_stride + i];
            const float step = scale(n, g) * m.q_scales[r * groups + g];
            sum = std::fma(static_cast<float>(dot), step, sum);
        }
        return sum;
    });
}

void matmul_q8(const Matmul& m) {
    const uint8_t* w = static_cast<const uint8_t*>(m.w);
    const float* scales = static_cast<const float*>(m.w_scales);
    const int scale_groups = m.w_scale_step == 0 ? 1 : (m.k + m.group - 1) / m.group;
    matmul_quantized(
        m,
        [&](int n, int i) {
            const size_t quad = static_cast<size_t>(n / kLanes) * ((m.k + 3) / 4) + i / 4;
            return w[(quad * kLanes + n % kLanes) * 4 + i % 4] - 128;
        },
        [&](int n, int g) {
            return scales[n / kLanes * scale_groups * kLanes + g * m.w_scale_step + n % kLanes];
        });
}

void matmul_q4(const Matmul& m) {
    const uint8_t* w = static_cast<const uint8_t*>(m.w);
    const uint16_t* scales = static_cast<const uint16_t*>(m.w_scales);
    const int groups = (m.k + m.group - 1) / m.group;
    matmul_quantized(
        m,
        [&](int n, int i) {
            const size_t octet = static_cast<size_t>(n / kLanes) * ((m.k + 7) / 8) + i / 8;
            const int pair = w[(octet * kLanes + n % kLanes) * 4 + i % 4];
            return (i % 8 < 4 ? pair & 15 : pair >> 4) - 8;
        },
        [&](int n, int g) {
            return half_to_float(scales[(n / kLanes * groups + g) * kLanes + n % kLanes]);
        });
}

// What a step of x in int8 is worth, and what turns floats into such steps. An infinity or a NaN
// makes the size NaN, and with it all that is computed of the values.
struct Step {
    float size, inverse;
    int8_t round(float x) const {
        const float steps = x * inverse;
        return std::isnan(steps) ? 0 : static_cast<int8_t>(steps + kRoundMagic - kRoundMagic);
    }
};

Step step_for(const float* x, int n) {
    float most = 0.0f, poison = 0.0f;
    for (int i = 0; i < n; ++i) {
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
        poison += x[i] * 0.0f;
    }
    return {most / 127.0f + poison, most >= kLeastQuantized ? 127.0f / most : 0.0f};
}

// q = x rounded to int8; returns what a step of it is worth.
float round_to_int8(const float* x, int n, int8_t* q) {
    const Step step = step_for(x, n);
    for (int i = 0; i < n; ++i) q[i] = step.round(x[i]);
    return step.size;
}

void quantize(const float* x, int n, int group, int8_t* q, float* scales, int32_t* sums) {
    for (int start = 0; start < n; start += group, ++scales, ++sums) {
        const int end = padded(start + group < n ? start + group : n);
        *scales = round_to_int8(x + start, end - start, q + start);
        *sums = 0;
        for (int i = start; i < end; ++i) *sums += q[i];
    }
}

// 0 where the scale is
float inverse_of(float scale) { return std::fabs(scale) >= FLT_MIN ? 1.0f / scale : 0.0f; }

float int4_steps(float x, float inverse) {
    const float steps = x * inverse;
    const float above = steps > -8.0f ? steps : -8.0f;
    return (above < 7.0f ? above : 7.0f) + kRoundMagic - kRoundMagic;
}

// x: [32] at a distance of 16
float best_int4_scale(const float* x) {
    float extreme = 0.0f;
    for (int i = 0; i < kInt4Group; ++i) {
        const float xi = x[i * kLanes];
        extreme = std::fabs(extreme) < std::fabs(xi) ? xi : extreme;
    }
    float best = extreme / -8.0f, least = INFINITY;
    for (const float steps : kInt4Steps) {
        float scale = extreme / steps;
        for (int refined = 0; refined < 2; ++refined) {  // once, to the least-squares fit
            const float inverse = inverse_of(scale);
            float error = 0.0f, along = 0.0f, length = 0.0f;
            for (int i = 0; i < kInt4Group; ++i) {
                const float q = int4_steps(x[i * kLanes], inverse);
                const float miss = q * scale - x[i * kLanes];
                error += miss * miss;
                along += q * x[i * kLanes];
                length += q * q;
            }
            best = error < least ? scale : best;
            least = error < least ? error : least;
            scale = length >= 1.0f ? along / length : 0.0f;
        }
    }
    best = best > -kLargestHalf ? best : -kLargestHalf;
    return best < kLargestHalf ? best : kLargestHalf;
}

void quantize_int4(const float* x, int8_t* q, uint16_t* scales) {
    for (int lane = 0; lane < kLanes; ++lane) {
        scales[lane] = float_to_half(best_int4_scale(x + lane));
        const float inverse = inverse_of(half_to_float(scales[lane]));
        for (int i = lane; i < kInt4Group * kLanes; i += kLanes) {
            q[i] = static_cast<int8_t>(int4_steps(x[i], inverse));
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
    float max = -INFINITY;
    for (int i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
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

// Where element d of the key or value of the token at `slot` stands.
int key_place(int, int d, int slot) { return d * kBlockTokens + slot; }
int value_place(int head_size, int d, int slot) {
    const int width = narrow_values(head_size) ? kLanes / 2 : kLanes;
    return (d / width * kBlockTokens + slot) * width + d % width;
}
int key8_place(int d, int slot) { return (d / 4 * kBlockTokens + slot) * 4 + d % 4; }
int value8_place(int d, int slot) {
    return ((d / kLanes * 4 + slot / 4) * kLanes + d % kLanes) * 4 + slot % 4;
}

template <KvType type>
float kv_load(const char* elements, int i) {
    if constexpr (type == KvType::kFloat32) return reinterpret_cast<const float*>(elements)[i];
    return half_to_float(reinterpret_cast<const uint16_t*>(elements)[i]);
}

// What is too large for half precision becomes the largest there is; an infinity becomes a NaN.
uint16_t kv_half(float x) {
    const float below = x < kLargestHalf ? x : kLargestHalf;
    return float_to_half(std::fma(x, 0.0f, below > -kLargestHalf ? below : -kLargestHalf));
}

template <KvType type, int place(int head_size, int d, int slot)>
void store(const float* x, int head_size, int slot, char* elements) {
    for (int d = 0; d < head_size; ++d) {
        const int i = place(head_size, d, slot);
        if (type == KvType::kFloat32) reinterpret_cast<float*>(elements)[i] = x[d];
        if (type == KvType::kFloat16) reinterpret_cast<uint16_t*>(elements)[i] = kv_half(x[d]);
    }
}

// The scales of a block's keys or values, behind n elements.
float* kv_scales(char* elements, int n) { return reinterpret_cast<float*>(elements + n); }
const float* kv_scales(const char* elements, int n) {
    return reinterpret_cast<const float*>(elements + n);
}

// x becomes `width` elements, zeros behind its own; a block holds n.
template <int place(int d, int slot)>
void store8(const float* x, int head_size, int width, int slot, char* elements, int n) {
    const Step step = step_for(x, head_size);
    kv_scales(elements, n)[slot] = step.size;
    for (int d = 0; d < width; ++d) {
        const int rounded = d < head_size ? step.round(x[d]) : 0;
        elements[place(d, slot)] = static_cast<char>(rounded + 128);
    }
}

void store_key8(const float* k, int head_size, int slot, char* keys) {
    store8<key8_place>(k, head_size, 4 * quads(head_size), slot, keys, key8_elements(head_size));
}

void store_value8(const float* v, int head_size, int slot, char* values) {
    store8<value8_place>(v, head_size, padded(head_size), slot, values, value8_elements(head_size));
}

int byte_weight(const char* elements, int i) { return static_cast<uint8_t>(elements[i]) - 128; }

void attend_head8(const Attention& a) {
    const int n_key_bytes = key8_elements(a.head_size);
    const int n_value_bytes = value8_elements(a.head_size);
    const auto block = [&](int t) { return a.block_table[t / kBlockTokens] * a.block_stride; };
    const float q_step = a.scale * round_to_int8(a.q, a.head_size, a.q8);
    for (int t = 0; t < a.n_tokens; ++t) {
        const char* keys = a.k_base + block(t);
        const int slot = t % kBlockTokens;
        int32_t dot = 0;
        for (int d = 0; d < a.head_size; ++d)
            dot += a.q8[d] * byte_weight(keys, key8_place(d, slot));
        a.scores[t] = static_cast<float>(dot) * (q_step * kv_scales(keys, n_key_bytes)[slot]);
    }
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    for (int d = 0; d < a.head_size; ++d) a.out[d] = 0.0f;
    for (int first = 0; first < a.n_tokens; first += kBlockTokens) {
        const char* values = a.v_base + block(first);
        const int n = a.n_tokens - first < kBlockTokens ? a.n_tokens - first : kBlockTokens;
        float* weights = a.scores + first;
        for (int i = 0; i < n; ++i) weights[i] *= kv_scales(values, n_value_bytes)[i];
        int8_t w8[kBlockTokens];
        const float step = round_to_int8(weights, n, w8);
        for (int d = 0; d < a.head_size; ++d) {
            int32_t dot = 0;
            for (int i = 0; i < n; ++i) dot += w8[i] * byte_weight(values, value8_place(d, i));
            a.out[d] = std::fma(static_cast<float>(dot), step, a.out[d]);
        }
    }
    for (int d = 0; d < a.head_size; ++d) a.out[d] *= scale;
}

template <KvType type>
void attend_head(const Attention& a) {
    const auto block = [&](int t) { return a.block_table[t / kBlockTokens] * a.block_stride; };
    for (int t = 0; t < a.n_tokens; ++t) {
        const char* keys = a.k_base + block(t);
        float dot = 0.0f;
        for (int d = 0; d < a.head_size; ++d) {
            dot = std::fma(a.q[d], kv_load<type>(keys, key_place(a.head_size, d, t % kBlockTokens)),
                           dot);
        }
        a.scores[t] = dot * a.scale;
    }
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    for (int d = 0; d < a.head_size; ++d) {
        float chains[4] = {};
        for (int t = 0; t < a.n_tokens; ++t) {
            const int place = value_place(a.head_size, d, t % kBlockTokens);
            const float value = kv_load<type>(a.v_base + block(t), place);
            chains[t % 4] = std::fma(a.scores[t], value, chains[t % 4]);
        }
        a.out[d] = ((chains[0] + chains[1]) + (chains[2] + chains[3])) * scale;
    }
}

template <void attend_head(const Attention& a)>
void attend(const Attention& a) {
    for (int row = 0; row < a.n_rows; ++row) {
        Attention one = a;
        one.n_tokens += row;
        for (int head = 0; head < a.n_heads; ++head) {
            one.q = a.q + row * a.q_stride + head * a.head_size;
            one.out = a.out + row * a.out_stride + head * a.head_size;
            attend_head(one);
        }
    }
}

}  // namespace

const KernelTable scalar_kernels = {
    "scalar",
    matmul_f32,
    matmul_bf16,
    matmul_q8,
    matmul_q4,
    quantize,
    quantize_int4,
    rmsnorm,
    rope,
    swiglu,
    {store<KvType::kFloat32, key_place>, store<KvType::kFloat16, key_place>, store_key8},
    {store<KvType::kFloat32, value_place>, store<KvType::kFloat16, value_place>, store_value8},
    {attend<attend_head<KvType::kFloat32>>, attend<attend_head<KvType::kFloat16>>,
     attend<attend_head8>},
    softmax,
};

}  // namespace pyllama2c
