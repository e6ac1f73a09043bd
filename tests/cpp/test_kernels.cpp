// Every instruction set computes the same bits as scalar.cpp, for any size.
//
// A kernel's test draws its sizes and inputs from a Random, calls `table` and returns everything
// that was written as bytes. The driver runs it with the same Random for scalar and for every other
// table of this CPU, and compares. A new kernel needs one function and one line in `tests`.
#include <algorithm>
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
    std::string sizes;    // for the message
    std::string written;  // as bytes
};

template <typename T>
std::string bytes(const std::vector<T>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// One NaN is as good as another.
std::string bytes(std::vector<float> values) {
    for (float& x : values) {
        if (std::isnan(x)) x = std::numeric_limits<float>::quiet_NaN();
    }
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

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

// What a broken model computes.
float not_finite(Random& random) {
    static const float broken[] = {kInfinity, -kInfinity, std::nanf(""), 3e38f, -3e38f, 1e6f};
    return broken[random.between(0, std::size(broken) - 1)];
}

// Memory as the engine lays it out: the padding behind n values holds zeros.
std::vector<float> padded_values(Random& random, int n) {
    std::vector<float> x = random.values(n);
    x.resize(padded(n));
    return x;
}

template <typename T>
std::vector<T> random_integers(Random& random, size_t n, int least, int most) {
    std::vector<T> result(n);
    const bool only_ends = random.chance(0.1);  // where narrow sums would overflow
    for (T& x : result) {
        const int value = random.between(least, most);
        x = static_cast<T>(!only_ends ? value : value % 2 ? least : most);
    }
    return result;
}

struct MatmulSizes {
    explicit MatmulSizes(Random& random)
        : k(random.between(1, random.chance(0.1) ? 2300 : 100)),
          panels(random.between(1, random.chance(0.1) ? 40 : 12)),
          rows(random.chance(0.3) ? 1 : random.between(1, 33)),
          x_stride(padded(k) + kLanes * random.between(0, 2)),
          y_stride(panels * kLanes + random.between(0, 20)) {}
    int k, panels, rows;
    size_t x_stride, y_stride;
};

// Float weights: `w` is all of them, packed.
Outcome run_float_matmul(void (*kernel)(const Matmul&), const MatmulSizes& size, const void* w,
                         Random& random) {
    std::vector<float> x;
    for (int r = 0; r < size.rows; ++r) {
        const std::vector<float> row = padded_values(random, size.k);
        x.insert(x.end(), row.begin(), row.end());
        x.resize((r + 1) * size.x_stride, std::nanf(""));
    }
    std::vector<float> y = random.values(size.y_stride * size.rows);
    Matmul m{};
    m.w = m.w_next = w;
    m.k = size.k;
    m.panels = size.panels;
    m.x = x.data();
    m.x_stride = size.x_stride;
    m.rows = size.rows;
    m.y = y.data();
    m.y_stride = size.y_stride;
    m.accumulate = random.chance(0.5);
    m.far = random.chance(0.5);
    kernel(m);
    return {sizes({m.k, m.panels, m.rows, m.accumulate}), bytes(y)};
}

Outcome test_matmul_f32(const KernelTable& table, Random& random) {
    const MatmulSizes size(random);
    const auto w = random.values(static_cast<size_t>(size.panels) * size.k * kLanes);
    return run_float_matmul(table.matmul_f32, size, w.data(), random);
}

Outcome test_matmul_bf16(const KernelTable& table, Random& random) {
    const MatmulSizes size(random);
    const size_t pairs = (size.k + 1) / 2;
    std::vector<uint16_t> w;
    for (size_t i = 0; i < size.panels * pairs * kLanes * 2; ++i) {
        const float value = random.value(-1, 1);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const bool beyond_k =
            size.k % 2 == 1 && i / (2 * kLanes) % pairs == pairs - 1 && i % 2 == 1;
        w.push_back(beyond_k ? 0 : static_cast<uint16_t>(bits >> 16));
    }
    return run_float_matmul(table.matmul_bf16, size, w.data(), random);
}

// Quantized weights. Activations as quantize() leaves them: zeros from k to the padding.
Outcome run_quantized_matmul(void (*kernel)(const Matmul&), const MatmulSizes& size, const void* w,
                             const void* w_scales, size_t w_scale_step, int group, Random& random) {
    const size_t groups = (size.k + group - 1) / group;
    auto q = random_integers<int8_t>(random, size.rows * size.x_stride, -127, 127);
    std::vector<int32_t> q_sums(size.rows * groups);
    for (int r = 0; r < size.rows; ++r) {
        for (size_t i = 0; i < size.x_stride; ++i) {
            int8_t& value = q[r * size.x_stride + i];
            if (i >= static_cast<size_t>(size.k) && i < static_cast<size_t>(padded(size.k)))
                value = 0;
            if (i < static_cast<size_t>(size.k)) q_sums[r * groups + i / group] += value;
        }
    }
    const std::vector<float> q_scales = random.values(size.rows * groups, 0.001f, 1.0f);
    std::vector<float> y = random.values(size.y_stride * size.rows);
    Matmul m{};
    m.w = m.w_next = w;
    m.w_scales = w_scales;
    m.w_scale_step = w_scale_step;
    m.k = size.k;
    m.panels = size.panels;
    m.group = group;
    m.q = q.data();
    m.x_stride = size.x_stride;
    m.q_scales = q_scales.data();
    m.q_sums = q_sums.data();
    m.rows = size.rows;
    m.y = y.data();
    m.y_stride = size.y_stride;
    m.accumulate = random.chance(0.5);
    m.far = random.chance(0.5);
    kernel(m);
    return {sizes({m.k, m.panels, m.rows, m.accumulate, group}), bytes(y)};
}

Outcome test_matmul_q8(const KernelTable& table, Random& random) {
    const MatmulSizes size(random);
    // A whole row in one group, or groups; one scale for each group, or one for the row.
    const int group = random.chance(0.5) ? padded(size.k) : kLanes * random.between(1, 6);
    const bool scale_per_group = random.chance(0.5);
    const size_t groups = scale_per_group ? (size.k + group - 1) / group : 1;
    const auto w = random_integers<uint8_t>(
        random, static_cast<size_t>(size.panels) * ((size.k + 3) / 4) * kLanes * 4, 0, 255);
    const auto scales = random.values(size.panels * groups * kLanes, 0.001f, 0.01f);
    return run_quantized_matmul(table.matmul_q8, size, w.data(), scales.data(),
                                scale_per_group ? kLanes : 0, group, random);
}

Outcome test_matmul_q4(const KernelTable& table, Random& random) {
    const MatmulSizes size(random);
    const size_t groups = (size.k + kInt4Group - 1) / kInt4Group;
    const auto w = random_integers<uint8_t>(
        random, static_cast<size_t>(size.panels) * ((size.k + 7) / 8) * kLanes * 4, 0, 255);
    // Halves from the smallest subnormal to 2, either sign.
    auto scales = random_integers<uint16_t>(random, size.panels * groups * kLanes, 0, 0x4000);
    for (uint16_t& scale : scales) scale |= random.chance(0.3) ? 0x8000 : 0;
    return run_quantized_matmul(table.matmul_q4, size, w.data(), scales.data(), kLanes, kInt4Group,
                                random);
}

Outcome test_quantize(const KernelTable& table, Random& random) {
    const int n = random.between(1, 400);
    const int group = random.chance(0.5) ? padded(n) : kLanes * random.between(1, 6);
    const size_t groups = (n + group - 1) / group;
    std::vector<float> x = padded_values(random, n);
    if (random.chance(0.2)) {  // halves, which have to round to even
        x[0] = 127;
        for (int i = 1; i < n; ++i) x[i] = 0.5f * static_cast<float>(random.between(-253, 253));
    }
    if (random.chance(0.1)) x.assign(x.size(), 0.0f);
    if (random.chance(0.1)) {  // to where 127 / max|x| would overflow
        const float tiny = std::ldexp(1.0f, random.between(-149, -110));
        for (float& value : x) value *= tiny;
    }
    if (random.chance(0.2)) {
        for (int i = random.between(1, 3); i > 0; --i)
            x[random.between(0, n - 1)] = not_finite(random);
    }
    std::vector<int8_t> q(padded(n) + 1, 7);
    std::vector<float> scales(groups + 1, 7.0f);
    std::vector<int32_t> sums(groups + 1, 7);
    table.quantize(x.data(), n, group, q.data(), scales.data(), sums.data());
    return {sizes({n, group}), bytes(q) + bytes(scales) + bytes(sums)};
}

Outcome test_quantize_int4(const KernelTable& table, Random& random) {
    const float size = std::pow(10.0f, random.value(-9, 6));
    std::vector<float> x = random.values(kInt4Group * kLanes, -size, size);
    for (float& value : x) {
        if (random.chance(0.05)) value = random.chance(0.1) ? extreme(random) : 0.0f;
    }
    for (int lane = 0; lane < kLanes; ++lane) {  // rows of zeros, and of whole numbers of steps
        if (!random.chance(0.2)) continue;
        const float step = random.chance(0.3) ? 0.0f : 0.25f;
        for (int i = lane; i < kInt4Group * kLanes; i += kLanes) {
            x[i] = step * static_cast<float>(random.between(-16, 16));
        }
    }
    std::vector<int8_t> q(kInt4Group * kLanes + 1, 7);
    std::vector<uint16_t> scales(kLanes + 1, 7);
    table.quantize_int4(x.data(), q.data(), scales.data());
    return {sizes({kInt4Group, kLanes}), bytes(q) + bytes(scales)};
}

Outcome test_rmsnorm(const KernelTable& table, Random& random) {
    const int n = random.between(1, 300);
    const std::vector<float> x = padded_values(random, n), weight = padded_values(random, n);
    std::vector<float> y(padded(n) + 1, 7.0f);
    table.rmsnorm(x.data(), weight.data(), n, random.chance(0.2) ? 0.0f : 1e-5f, y.data());
    return {sizes({n}), bytes(y)};
}

Outcome test_rope(const KernelTable& table, Random& random) {
    const int n = 2 * random.between(1, 70);
    const std::vector<float> cos = random.values(n), sin = random.values(n);
    std::vector<float> x = random.values(n + 1);
    table.rope(x.data(), cos.data(), sin.data(), n);
    return {sizes({n}), bytes(x)};
}

Outcome test_swiglu(const KernelTable& table, Random& random) {
    const int panels = random.between(1, 20);
    std::vector<float> gate_up = random.values(2 * kLanes * panels, -10, 10);
    if (random.chance(0.5)) {
        for (float& x : gate_up) x = extreme(random);
    }
    std::vector<float> h(panels * kLanes + 1, 7.0f);
    table.swiglu(gate_up.data(), panels, h.data());
    return {sizes({panels}), bytes(h)};
}

Outcome test_softmax(const KernelTable& table, Random& random) {
    const int n = random.between(1, 1000);
    std::vector<float> x = random.values(n, -20, 20);
    const int kind = random.between(0, 4);
    for (float& value : x) {
        if (kind == 1 && random.chance(0.3)) value = -kInfinity;
        if (kind == 2) value = extreme(random);
        if (kind == 3) value *= 1e30f;
        if (kind == 4 && random.chance(0.1)) value = not_finite(random);
    }
    if (kind == 1) x[random.between(0, n - 1)] = 0;  // not all of them
    x.resize(padded(n), 1e30f);                      // what lies in the padding must not matter
    x.push_back(7.0f);
    table.softmax(x.data(), n);
    return {sizes({n, kind}), bytes(x)};
}

// Vectors of any magnitude: subnormal and infinite halves, int8 scales next to overflow.
template <KvType kv>
Outcome test_store(const KernelTable& table, Random& random) {
    const int type = static_cast<int>(kv);
    const int head_size = random.between(1, 80), slot = random.between(0, kBlockTokens - 1);
    const int exponent = random.between(-149, 120), spread = random.between(0, 40);
    std::vector<float> x = random.values(head_size);
    for (float& value : x) {
        value = std::ldexp(value, std::min(exponent + random.between(0, spread), 127));
        if (kv != KvType::kInt8 && random.chance(0.1)) value = extreme(random);
    }
    std::string keys(kv_key_bytes(kv, head_size), '?'), values(kv_value_bytes(kv, head_size), '?');
    table.store_key[type](x.data(), head_size, slot, keys.data());
    table.store_value[type](x.data(), head_size, slot, values.data());
    const int width = narrow_values(head_size) ? kLanes / 2 : kLanes;
    for (int d = head_size; d % width != 0; ++d) {  // beyond a value: anything
        if (kv == KvType::kInt8) continue;
        const size_t element = (d / width * kBlockTokens + slot) * width + d % width;
        values.replace(element * kv_element_bytes(kv), kv_element_bytes(kv), kv_element_bytes(kv),
                       '?');
    }
    return {sizes({head_size, slot, exponent}), keys + values};
}

// A cache of more blocks than the sequence has, in any order, full of ones bits (NaN) where nothing
// was stored.
Outcome run_attention(const KernelTable& table, KvType kv, Random& random) {
    const int type = static_cast<int>(kv);
    const int head_size = random.chance(0.3)   ? 16 * random.between(1, 8)
                          : random.chance(0.3) ? random.between(1, 9)  // narrow values up to 8
                                               : random.between(2, 128);
    const int n_heads = random.between(1, 5);
    const int n_tokens = random.between(1, random.chance(0.1) ? 200 : 60);
    const int n_rows = random.between(1, (n_tokens - 1) % kBlockTokens + 1);
    const int n_blocks = (n_tokens + kBlockTokens - 1) / kBlockTokens + random.between(0, 3);
    const size_t key_bytes = kv_key_bytes(kv, head_size);
    const size_t stride = key_bytes + kv_value_bytes(kv, head_size) + 64 * random.between(0, 2);
    std::vector<int32_t> block_table(n_blocks);
    for (int i = 0; i < n_blocks; ++i) block_table[i] = i;
    for (int i = n_blocks - 1; i > 0; --i) {
        std::swap(block_table[i], block_table[random.between(0, i)]);
    }
    std::vector<char> cache(stride * n_blocks, static_cast<char>(0xFF));
    const float spread = random.chance(0.2) ? 30.0f : 1.0f;
    const bool broken = random.chance(0.2);
    const auto vector = [&](int n, float most) {
        std::vector<float> x = random.values(n, -most, most);
        if (broken && random.chance(0.1)) x[random.between(0, n - 1)] = not_finite(random);
        return x;
    };
    for (int t = 0; t < n_tokens; ++t) {
        char* block = cache.data() + block_table[t / kBlockTokens] * stride;
        const std::vector<float> k = vector(head_size, spread), v = vector(head_size, 1.0f);
        table.store_key[type](k.data(), head_size, t % kBlockTokens, block);
        table.store_value[type](v.data(), head_size, t % kBlockTokens, block + key_bytes);
    }
    const int q_stride = n_heads * head_size + random.between(0, 20);
    const int out_stride = n_heads * head_size + random.between(0, 20);
    const std::vector<float> q = vector(n_rows * q_stride, 1.0f);
    std::vector<float> scores(kQueriesAtOnce * padded(n_tokens));
    std::vector<float> out(n_rows * out_stride + 1, 7.0f);
    std::vector<int8_t> q8(kQueriesAtOnce * padded(head_size));
    Attention a{};
    a.q = q.data();
    a.q_stride = q_stride;
    a.n_rows = n_rows;
    a.n_heads = n_heads;
    a.k_base = cache.data();
    a.v_base = cache.data() + key_bytes;
    if (random.chance(0.5)) {
        a.k_next = a.k_base;
        a.v_next = a.v_base;
        a.next_table = block_table.data();
        a.next_blocks = random.between(1, n_blocks);
    }
    a.block_stride = stride;
    a.block_table = block_table.data();
    a.n_tokens = n_tokens - n_rows + 1;
    a.head_size = head_size;
    a.scale = 1.0f / std::sqrt(static_cast<float>(head_size));
    a.scores = scores.data();
    a.q8 = q8.data();
    a.out = out.data();
    a.out_stride = out_stride;
    table.attend[type](a);
    if (broken) return {sizes({head_size, n_heads, n_rows, n_tokens}), bytes(out)};
    for (const float x : out) CHECK(x == x, "NaN from an unused place");
    std::string keys;
    for (int b = 0; b < n_blocks; ++b) keys.append(cache.data() + b * stride, key_bytes);
    return {sizes({head_size, n_heads, n_rows, n_tokens}), keys + bytes(out)};
}

template <KvType kv>
Outcome test_attention(const KernelTable& table, Random& random) {
    return run_attention(table, kv, random);
}

const struct {
    const char* name;
    Outcome (*run)(const KernelTable&, Random&);
    int times;
} tests[] = {
    {"matmul_f32", test_matmul_f32, 700},
    {"matmul_bf16", test_matmul_bf16, 700},
    {"matmul_q8", test_matmul_q8, 1000},
    {"matmul_q4", test_matmul_q4, 700},
    {"quantize", test_quantize, 2000},
    {"quantize_int4", test_quantize_int4, 3000},
    {"rmsnorm", test_rmsnorm, 2000},
    {"rope", test_rope, 1000},
    {"swiglu", test_swiglu, 2000},
    {"softmax", test_softmax, 3000},
    {"store float32", test_store<KvType::kFloat32>, 200},
    {"store float16", test_store<KvType::kFloat16>, 3000},
    {"store int8", test_store<KvType::kInt8>, 2000},
    {"attention float32", test_attention<KvType::kFloat32>, 500},
    {"attention float16", test_attention<KvType::kFloat16>, 500},
    {"attention int8", test_attention<KvType::kInt8>, 500},
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
                CHECK(actual.written == expected.written,
                      isa << " " << test.name << " " << expected.sizes << " seed " << seed);
            }
        }
    }
    CHECK(find_kernels("none") == nullptr);
}

// What stands behind the last token is skipped: a sum of -0, which an exact 0 times anything would
// turn to +0, stays -0.
void sums_keep_their_sign() {
    for (const std::string& isa : supported_isas()) {
        const KernelTable& table = *find_kernels(isa.c_str());
        for (const int head_size : {4, 16}) {
            const size_t key_bytes = kv_key_bytes(KvType::kFloat32, head_size);
            std::vector<char> cache(key_bytes + kv_value_bytes(KvType::kFloat32, head_size));
            const int32_t block_table[] = {0};
            const int n_tokens = 5;
            std::vector<float> q(head_size), scores(kQueriesAtOnce * kLanes), out(head_size);
            q[0] = 1.0f;
            for (int t = 0; t < n_tokens; ++t) {
                std::vector<float> k(padded(head_size)), v(padded(head_size));
                k[0] = t + 1 < n_tokens ? -80.0f : 0.0f;  // weights of about 1e-35, then 1
                std::fill_n(v.begin(), head_size, t + 1 < n_tokens ? -1e-20f : -0.0f);
                table.store_key[0](k.data(), head_size, t, cache.data());
                table.store_value[0](v.data(), head_size, t, cache.data() + key_bytes);
            }
            Attention a{};
            a.q = q.data();
            a.n_rows = 1;
            a.n_heads = 1;
            a.k_base = cache.data();
            a.v_base = cache.data() + key_bytes;
            a.block_table = block_table;
            a.n_tokens = n_tokens;
            a.head_size = head_size;
            a.scale = 1.0f;
            a.scores = scores.data();
            a.out = out.data();
            table.attend[0](a);
            for (const float x : out) CHECK(x == 0 && std::signbit(x), isa << " " << head_size);
        }
    }
}

}  // namespace

int main() {
    sums_keep_their_sign();
    every_table_equals_scalar();
    return check::finish("test_kernels");
}
