// The CPU's forward pass: the same bits with any number of threads, and many callers of one engine
// at once. Built with ThreadSanitizer too.
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "backends/cpu/transformer.h"
#include "check.h"
#include "engine/engine.h"
#include "model/weights.h"
#include "random.h"

using namespace pyllama2c;

namespace {

// Large enough that a single row is worth two threads.
ModelConfig make_config() {
    ModelConfig c;
    c.dim = 192;
    c.hidden_dim = 420;
    c.n_layers = 2;
    c.n_heads = 6;
    c.n_kv_heads = 3;
    c.vocab_size = 90;
    c.max_seq_len = 64;
    return c;
}

struct RandomModel {
    explicit RandomModel(const ModelConfig& c) {
        Random random(1);
        const auto tensor = [&](int64_t rows, int64_t cols) {
            const float spread = rows == 1 ? 1.0f : 0.1f;
            values.push_back(random.values(rows * cols, rows == 1 ? 0.5f : -spread, spread));
            Tensor t;
            t.rows = rows;
            t.cols = cols;
            t.data = reinterpret_cast<const unsigned char*>(values.back().data());
            return t;
        };
        tensors.config = c;
        tensors.token_embedding = tensors.output = tensor(c.vocab_size, c.dim);
        tensors.final_norm = tensor(1, c.dim);
        for (int i = 0; i < c.n_layers; ++i) {
            tensors.layers.push_back({tensor(1, c.dim), tensor(c.dim, c.dim),
                                      tensor(c.kv_dim(), c.dim), tensor(c.kv_dim(), c.dim),
                                      tensor(c.dim, c.dim), tensor(1, c.dim),
                                      tensor(c.hidden_dim, c.dim), tensor(c.dim, c.hidden_dim),
                                      tensor(c.hidden_dim, c.dim)});
        }
    }

    std::vector<std::vector<float>> values;
    ModelTensors tensors;
};

std::unique_ptr<Engine> make_engine(const std::shared_ptr<const Weights>& weights, KvType kv_type,
                                    int n_threads) {
    constexpr int kSequences = 4, kChunk = 9, kBlocks = 16;
    return std::make_unique<Engine>(
        std::make_unique<CpuTransformer>(weights, kv_type, n_threads, kSequences + kChunk, kBlocks),
        kSequences, kChunk);
}

std::vector<int32_t> write(Engine& engine, int seed) {
    SamplingParams params;
    params.temperature = 1.0f;
    params.max_tokens = 12;
    params.rng_state = 1 + seed;
    const std::vector<int32_t> prompt(1 + 7 * seed % 20, 5 + seed);
    const uint64_t id = engine.submit(prompt, prompt.size(), params, 0);
    return engine.wait({id}, true, [] {}).at(0).tokens;
}

void test_threads_and_callers(const ModelTensors& tensors, WeightType type, KvType kv_type) {
    constexpr int kTexts = 6;
    const auto weights = std::make_shared<const Weights>(tensors, type, 2);
    std::vector<std::vector<int32_t>> expected;
    const auto alone = make_engine(weights, kv_type, 1);
    for (int seed = 0; seed < kTexts; ++seed) expected.push_back(write(*alone, seed));

    for (const int n_threads : {1, 2, 3}) {
        const auto engine = make_engine(weights, kv_type, n_threads);
        std::vector<std::vector<int32_t>> texts(kTexts);
        std::vector<std::thread> callers;
        for (int seed = 0; seed < kTexts; ++seed) {
            callers.emplace_back([&, seed] { texts[seed] = write(*engine, seed); });
        }
        for (std::thread& caller : callers) caller.join();
        CHECK(texts == expected, weight_type_name(type) << ", " << n_threads << " threads");
    }
}

// One head of more than int8 sums can hold; nothing of it is allocated.
void test_heads_too_large_for_int8() {
    ModelConfig c = make_config();
    c.n_heads = c.n_kv_heads = 1;
    c.dim = kMaxGroup;
    CHECK(KvCache::bytes_per_block(c, KvType::kInt8) > 0);
    c.dim = kMaxGroup + 2;
    CHECK_THROWS(KvCache::bytes_per_block(c, KvType::kInt8), ArgumentError);
    CHECK(KvCache::bytes_per_block(c, KvType::kFloat16) > 0);
}

}  // namespace

int main() {
    test_heads_too_large_for_int8();
    const RandomModel model(make_config());
    test_threads_and_callers(model.tensors, WeightType::kFloat32, KvType::kFloat32);
    test_threads_and_callers(model.tensors, WeightType::kBFloat16, KvType::kFloat16);
    test_threads_and_callers(model.tensors, WeightType::kInt8, KvType::kInt8);
    test_threads_and_callers(model.tensors, WeightType::kInt4, KvType::kFloat32);
    ModelConfig narrow = make_config();  // heads of 8, whole ones for two and three threads
    narrow.n_heads = 24;
    narrow.n_kv_heads = 6;
    const RandomModel other(narrow);
    test_threads_and_callers(other.tensors, WeightType::kFloat32, KvType::kFloat32);
    return check::finish("test_forward");
}
