// Every instruction set computes the same bits as scalar.cpp, for any size.
//
// A kernel's test draws its sizes and inputs from a Random, calls `table` and returns everything
// that was written as bytes. The driver runs it with the same Random for scalar and for every other
// table of this CPU, and compares. A new kernel needs one function and one line in `tests`.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/cpu_info.h"
#include "check.h"
#include "kernels/kernels.h"
#include "random.h"

using namespace pyllama2c;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Outcome {
    std::string sizes;  // for the message
    std::vector<float> written;
};

std::string sizes(std::initializer_list<int> numbers) {
    std::string result;
    for (const int n : numbers) result += (result.empty() ? "" : " x ") + std::to_string(n);
    return result;
}

// Values to both ends of what a float can be, and ordinary ones.
float extreme(Random& random) {
    static const float special[] = {0.0f,   -0.0f,   1.0f,   -1.0f,   87.0f,   -87.0f,   88.0f,
                                    -88.0f, -86.99f, 87.99f, 1e-30f,  -1e-30f, 1e-42f,   1e10f,
                                    -1e10f, 3e38f,   -3e38f, -87.01f, 88.01f,  0.34657f, -0.34657f};
    if (random.chance(0.5)) return special[random.between(0, std::size(special) - 1)];
    return random.value(-100, 100);
}

// Memory as the engine lays it out: the padding behind n values holds zeros.
std::vector<float> padded_values(Random& random, int n) {
    std::vector<float> x = random.values(n);
    x.resize(padded(n));
    return x;
}

Outcome test_matmul_f32(const KernelTable& table, Random& random) {
    const int k = random.between(1, random.chance(0.1) ? 2300 : 100);
    const int panels = random.between(1, 21);
    const int rows = random.between(1, 33);
    const size_t x_stride = k + random.between(0, 20);
    const size_t y_stride = panels * kLanes + random.between(0, 20);
    const std::vector<float> w = random.values(static_cast<size_t>(panels) * k * kLanes);
    const std::vector<float> x = random.values(x_stride * rows);
    std::vector<float> y = random.values(y_stride * rows);
    const bool accumulate = random.chance(0.5);
    table.matmul_f32(w.data(), k, panels, x.data(), x_stride, rows, y.data(), y_stride, accumulate);
    return {sizes({k, panels, rows, accumulate}), y};
}

Outcome test_rmsnorm(const KernelTable& table, Random& random) {
    const int n = random.between(1, 300);
    const std::vector<float> x = padded_values(random, n), weight = padded_values(random, n);
    std::vector<float> y(padded(n) + 1, 7.0f);
    table.rmsnorm(x.data(), weight.data(), n, random.chance(0.2) ? 0.0f : 1e-5f, y.data());
    return {sizes({n}), y};
}

Outcome test_rope(const KernelTable& table, Random& random) {
    const int n = 2 * random.between(1, 70);
    const std::vector<float> cos = random.values(n), sin = random.values(n);
    std::vector<float> x = random.values(n + 1);
    table.rope(x.data(), cos.data(), sin.data(), n);
    return {sizes({n}), x};
}

Outcome test_swiglu(const KernelTable& table, Random& random) {
    const int panels = random.between(1, 20);
    std::vector<float> gate_up = random.values(2 * kLanes * panels, -10, 10);
    if (random.chance(0.5)) {
        for (float& x : gate_up) x = extreme(random);
    }
    std::vector<float> h(panels * kLanes + 1, 7.0f);
    table.swiglu(gate_up.data(), panels, h.data());
    return {sizes({panels}), h};
}

Outcome test_softmax(const KernelTable& table, Random& random) {
    const int n = random.between(1, 1000);
    std::vector<float> x = random.values(n, -20, 20);
    const int kind = random.between(0, 3);
    for (float& value : x) {
        if (kind == 1 && random.chance(0.3)) value = -kInfinity;
        if (kind == 2) value = extreme(random);
        if (kind == 3) value *= 1e30f;
    }
    if (kind == 1) x[random.between(0, n - 1)] = 0;  // not all of them
    x.resize(padded(n), 1e30f);                      // what lies in the padding must not matter
    x.push_back(7.0f);
    table.softmax(x.data(), n);
    return {sizes({n, kind}), x};
}

// A cache of more blocks than the sequence has, in any order, its unused places full of NaN.
Outcome test_attend_f32(const KernelTable& table, Random& random) {
    const int head_size = random.chance(0.3) ? 16 * random.between(1, 8) : random.between(2, 128);
    const int n_tokens = random.between(1, 200);
    const int n_blocks = (n_tokens + kBlockTokens - 1) / kBlockTokens + random.between(0, 3);
    const size_t k_floats = static_cast<size_t>(head_size) * kBlockTokens;
    const size_t block_floats =
        k_floats + static_cast<size_t>(padded(head_size)) * kBlockTokens + random.between(0, 50);
    std::vector<int32_t> block_table(n_blocks);
    for (int i = 0; i < n_blocks; ++i) block_table[i] = i;
    for (int i = n_blocks - 1; i > 0; --i) {
        std::swap(block_table[i], block_table[random.between(0, i)]);
    }
    std::vector<float> cache(block_floats * n_blocks, std::nanf(""));
    const float spread = random.chance(0.2) ? 30.0f : 1.0f;
    for (int t = 0; t < n_tokens; ++t) {
        float* block = cache.data() + block_table[t / kBlockTokens] * block_floats;
        const int slot = t % kBlockTokens;
        for (int d = 0; d < padded(head_size); ++d) {
            if (d < head_size) block[d * kBlockTokens + slot] = random.value(-spread, spread);
            block[k_floats + (d / kLanes * kBlockTokens + slot) * kLanes + d % kLanes] =
                d < head_size ? random.value(-1, 1) : 0.0f;
        }
    }
    const std::vector<float> q = random.values(head_size);
    std::vector<float> scores(padded(n_tokens)), out(head_size + 1, 7.0f);
    Attention a;
    a.q = q.data();
    a.k_base = reinterpret_cast<const char*>(cache.data());
    a.v_base = a.k_base + k_floats * sizeof(float);
    a.block_stride = block_floats * sizeof(float);
    a.block_table = block_table.data();
    a.n_tokens = n_tokens;
    a.head_size = head_size;
    a.scale = 1.0f / std::sqrt(static_cast<float>(head_size));
    a.scores = scores.data();
    a.out = out.data();
    table.attend_f32(a);
    return {sizes({head_size, n_tokens}), out};
}

const struct {
    const char* name;
    Outcome (*run)(const KernelTable&, Random&);
    int times;
} tests[] = {
    {"matmul_f32", test_matmul_f32, 1000},
    {"rmsnorm", test_rmsnorm, 2000},
    {"rope", test_rope, 1000},
    {"swiglu", test_swiglu, 2000},
    {"softmax", test_softmax, 3000},
    {"attend_f32", test_attend_f32, 1000},
};

void every_table_equals_scalar() {
    for (const std::string& isa : supported_isas()) {
        const KernelTable* table = find_kernels(isa.c_str());
        CHECK(table != nullptr && isa == table->isa, isa);
        std::printf("testing %s\n", isa.c_str());
        for (const auto& test : tests) {
            for (int seed = 1; seed <= test.times; ++seed) {
                Random random(seed), same(seed);
                const Outcome expected = test.run(scalar_kernels, same);
                const Outcome actual = test.run(*table, random);
                CHECK(actual.written.size() == expected.written.size() &&
                          std::memcmp(actual.written.data(), expected.written.data(),
                                      expected.written.size() * sizeof(float)) == 0,
                      isa << " " << test.name << " " << expected.sizes << " seed " << seed);
            }
        }
    }
    CHECK(find_kernels("none") == nullptr);
}

// Scalar against what the mathematics says, in double.

void matmul_is_right() {
    Random random(1);
    const int k = 37, panels = 2, rows = 3;
    const std::vector<float> w = random.values(panels * k * kLanes), x = random.values(rows * k);
    std::vector<float> y(rows * panels * kLanes, 5.0f);
    scalar_kernels.matmul_f32(w.data(), k, panels, x.data(), k, rows, y.data(), panels * kLanes,
                              true);
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
    const std::vector<float> x = padded_values(random, n), weight = padded_values(random, n);
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
    every_table_equals_scalar();
    return check::finish("test_kernels");
}
