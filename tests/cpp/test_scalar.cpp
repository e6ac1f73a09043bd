// scalar.cpp, which every instruction set is compared with, against what the mathematics says, in
// double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "random.h"

using namespace pyllama2c;

namespace {

void matmul_is_right() {
    Random random(1);
    const int k = 37, panels = 2, rows = 3;
    const std::vector<float> w = random.values(panels * k * kLanes), x = random.values(rows * k);
    std::vector<float> y(rows * panels * kLanes, 5.0f);
    Matmul m{};
    m.w = m.w_next = w.data();
    m.k = k;
    m.panels = panels;
    m.x = x.data();
    m.x_stride = k;
    m.rows = rows;
    m.y = y.data();
    m.y_stride = panels * kLanes;
    m.accumulate = true;
    scalar_kernels.matmul_f32(m);
    for (int r = 0; r < rows; ++r) {
        for (int n = 0; n < panels * kLanes; ++n) {
            double sum = 5;
            for (int i = 0; i < k; ++i) {
                sum += double(x[r * k + i]) * w[(n / kLanes * k + i) * kLanes + n % kLanes];
            }
            CHECK(std::abs(y[r * panels * kLanes + n] - sum) < 1e-5);
        }
    }
}

void attention_is_right(int head_size) {
    Random random(5);
    const int n_heads = 3, n_tokens = 37, n_blocks = 3;
    const struct {
        KvType type;
        double tolerance;
    } kinds[] = {{KvType::kFloat32, 1e-5}, {KvType::kFloat16, 2e-3}, {KvType::kInt8, 2e-2}};
    for (const auto& kind : kinds) {
        const int type = static_cast<int>(kind.type);
        const size_t key_bytes = kv_key_bytes(kind.type, head_size);
        const size_t stride = key_bytes + kv_value_bytes(kind.type, head_size);
        std::vector<char> cache(stride * n_blocks);
        const int32_t block_table[] = {2, 0, 1};
        const std::vector<float> q = random.values(n_heads * head_size);
        std::vector<std::vector<float>> k, v;
        for (int t = 0; t < n_tokens; ++t) {
            k.push_back(random.values(padded(head_size)));
            v.push_back(random.values(padded(head_size)));
            char* block = cache.data() + block_table[t / kBlockTokens] * stride;
            scalar_kernels.store_key[type](k[t].data(), head_size, t % kBlockTokens, block);
            scalar_kernels.store_value[type](v[t].data(), head_size, t % kBlockTokens,
                                             block + key_bytes);
        }
        std::vector<float> scores(kQueriesAtOnce * padded(n_tokens)), out(n_heads * head_size);
        std::vector<int8_t> q8(padded(head_size));
        Attention a{};
        a.q = q.data();
        a.n_rows = 1;
        a.n_heads = n_heads;
        a.k_base = cache.data();
        a.v_base = cache.data() + key_bytes;
        a.block_stride = stride;
        a.block_table = block_table;
        a.n_tokens = n_tokens;
        a.head_size = head_size;
        a.scale = 0.3f;
        a.scores = scores.data();
        a.q8 = q8.data();
        a.out = out.data();
        scalar_kernels.attend[type](a);
        for (int h = 0; h < n_heads; ++h) {
            const size_t first = h * head_size;
            std::vector<double> sums(head_size);
            double total = 0;
            for (int t = 0; t < n_tokens; ++t) {
                double dot = 0;
                for (int d = 0; d < head_size; ++d) dot += double(q[first + d]) * k[t][d];
                const double weight = std::exp(dot * 0.3);
                for (int d = 0; d < head_size; ++d) sums[d] += weight * v[t][d];
                total += weight;
            }
            for (int d = 0; d < head_size; ++d) {
                const double sum = sums[d] / total;
                CHECK(std::abs(out[first + d] - sum) < kind.tolerance,
                      out[first + d] << " for " << sum);
            }
        }
    }
}

void quantize_is_right() {
    Random random(6);
    std::vector<float> x = random.values(43);
    x.resize(padded(43));
    std::vector<int8_t> q(48);
    std::vector<float> scales(2);
    std::vector<int32_t> sums(2);
    scalar_kernels.quantize(x.data(), 43, 32, q.data(), scales.data(), sums.data());
    int32_t expected_sums[2] = {};
    for (int i = 0; i < 43; ++i) {
        CHECK(std::abs(q[i] * scales[i / 32] - x[i]) <= 0.501f * scales[i / 32]);
        expected_sums[i / 32] += q[i];
    }
    CHECK(sums[0] == expected_sums[0] && sums[1] == expected_sums[1]);
}

double int4_error(const float* x, double scale) {
    double error = 0;
    for (int i = 0; i < kInt4Group; ++i) {
        const double q = std::clamp(std::nearbyint(x[i * kLanes] / scale), -8.0, 7.0);
        error += std::pow(q * scale - x[i * kLanes], 2);
    }
    return error;
}

void quantize_int4_is_right() {
    Random random(7);
    double found = 0, possible = 0;
    for (int times = 0; times < 20; ++times) {
        std::vector<float> x(kInt4Group * kLanes);
        for (float& value : x) {  // about normal
            for (int i = 0; i < 6; ++i) value += random.value(-0.03f, 0.03f);
        }
        std::vector<int8_t> q(x.size());
        std::vector<uint16_t> scales(kLanes);
        scalar_kernels.quantize_int4(x.data(), q.data(), scales.data());
        for (int lane = 0; lane < kLanes; ++lane) {
            const float scale = half_to_float(scales[lane]);
            double error = 0, least = INFINITY;
            for (size_t i = lane; i < x.size(); i += kLanes) {
                CHECK(q[i] >= -8 && q[i] <= 7);
                error += std::pow(q[i] * scale - x[i], 2);
            }
            CHECK(std::abs(error / int4_error(&x[lane], scale) - 1) < 1e-3);
            for (double step = 0.5; step < 2; step *= 1.002) {
                least = std::min(least, int4_error(&x[lane], scale * step));
                least = std::min(least, int4_error(&x[lane], -scale * step));
            }
            found += error;
            possible += least;
        }
    }
    CHECK(found < 1.02 * possible, found / possible);
    // What no half can hold becomes the largest there is.
    std::vector<float> x(kInt4Group * kLanes, 3e38f);
    std::vector<int8_t> q(x.size());
    std::vector<uint16_t> scales(kLanes);
    scalar_kernels.quantize_int4(x.data(), q.data(), scales.data());
    CHECK(q[0] * half_to_float(scales[0]) == 8 * kLargestHalf, q[0] * half_to_float(scales[0]));
}

void exp_is_right() {
    // softmax of (x, 0): its first value is exp(x) / (exp(x) + 1)
    double worst = 0;
    for (double x = -87; x <= 0; x += 0.00097) {
        float pair[kLanes] = {static_cast<float>(x), 0.0f};
        scalar_kernels.softmax(pair, 2);
        const double e = std::exp(static_cast<double>(static_cast<float>(x)));
        worst = std::max(worst, std::abs(pair[0] / (e / (e + 1)) - 1));
    }
    CHECK(worst < 5e-7, "relative error " << worst);
    float pair[kLanes] = {-200.0f, 0.0f};
    scalar_kernels.softmax(pair, 2);
    CHECK(pair[0] == 0.0f && pair[1] == 1.0f);
}

void swiglu_is_right() {
    for (double gate = -90; gate <= 90; gate += 0.37) {
        float gate_up[2 * kLanes] = {}, h[kLanes];
        gate_up[0] = static_cast<float>(gate);
        gate_up[kLanes] = 3.0f;
        scalar_kernels.swiglu(gate_up, 1, h);
        const double x = gate_up[0], expected = 3 * x / (1 + std::exp(-x));
        CHECK(std::abs(h[0] - expected) <= 1e-6 * std::abs(expected) + 1e-35, "gate " << x);
    }
}

void rmsnorm_is_right() {
    Random random(2);
    const int n = 43;
    std::vector<float> x = random.values(n), weight = random.values(n);
    for (auto* values : {&x, &weight}) values->resize(padded(n));
    std::vector<float> y(padded(n));
    scalar_kernels.rmsnorm(x.data(), weight.data(), n, 1e-5f, y.data());
    double squares = 0;
    for (const float value : x) squares += double(value) * value;
    for (int i = 0; i < n; ++i) {
        CHECK(std::abs(y[i] - x[i] / std::sqrt(squares / n + 1e-5) * weight[i]) < 1e-6);
    }
}

}  // namespace

int main() {
    matmul_is_right();
    exp_is_right();
    swiglu_is_right();
    rmsnorm_is_right();
    for (const int head_size : {5, 8, 10, 32}) attention_is_right(head_size);
    quantize_is_right();
    quantize_int4_is_right();
    return check::finish("test_scalar");
}
