// usage: test_logits [TEXTS CHECKPOINT...]
//
// The whole forward pass has the same bits whatever the instruction set, the number of threads and
// the way its rows were batched: for random models of awkward shapes, and for the given files with
// so many texts, in each type of weights and of KV cache. Prints a hash of the logits of each,
// which must be the same on every machine too; .ci/aarch64 compares them between x86 and ARM.
//
// PYLLAMA2C_FORCE_ISA restricts it to one instruction set.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "backends/cpu/transformer.h"
#include "base/cpu_info.h"
#include "check.h"
#include "model/checkpoint.h"
#include "random.h"

using namespace pyllama2c;

namespace {

// ---- random models ----

// Owns what the tensors point to.
struct Arrays {
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<int8_t>> bytes;
};

Tensor random_norm(Random& random, Arrays& arrays, int n) {
    arrays.floats.push_back(random.values(n, 0.5f, 1.5f));
    const void* data = arrays.floats.back().data();
    return {DType::kFloat32, 1, n, static_cast<const unsigned char*>(data), nullptr, 0};
}

// Of unit variance in what it makes of inputs of unit variance. With a group size: int8.
Tensor random_matrix(Random& random, Arrays& arrays, int rows, int cols, int group) {
    const size_t n = static_cast<size_t>(rows) * cols;
    const float most = std::sqrt(3.0f / static_cast<float>(cols));
    Tensor tensor{group > 0 ? DType::kInt8 : DType::kFloat32, rows, cols, nullptr, nullptr, group};
    if (group == 0) {
        arrays.floats.push_back(random.values(n, -most, most));
        tensor.data = reinterpret_cast<const unsigned char*>(arrays.floats.back().data());
        return tensor;
    }
    arrays.bytes.emplace_back(n);
    for (int8_t& value : arrays.bytes.back())
        value = static_cast<int8_t>(random.between(-127, 127));
    arrays.floats.push_back(random.values(n / group, most / 200, most / 100));
    tensor.data = reinterpret_cast<const unsigned char*>(arrays.bytes.back().data());
    tensor.scales = reinterpret_cast<const unsigned char*>(arrays.floats.back().data());
    return tensor;
}

ModelTensors random_model(const ModelConfig& c, int group) {
    Random random(c.dim + c.hidden_dim);
    auto arrays = std::make_shared<Arrays>();
    const auto norm = [&] { return random_norm(random, *arrays, c.dim); };
    const auto matrix = [&](int rows, int cols) {
        return random_matrix(random, *arrays, rows, cols, group);
    };
    ModelTensors model;
    model.config = c;
    model.token_embedding = matrix(c.vocab_size, c.dim);
    for (int i = 0; i < c.n_layers; ++i) {
        LayerTensors layer;
        layer.attention_norm = norm();
        layer.wq = matrix(c.dim, c.dim);
        layer.wk = matrix(c.kv_dim(), c.dim);
        layer.wv = matrix(c.kv_dim(), c.dim);
        layer.wo = matrix(c.dim, c.dim);
        layer.ffn_norm = norm();
        layer.w1 = matrix(c.hidden_dim, c.dim);
        layer.w2 = matrix(c.dim, c.hidden_dim);
        layer.w3 = matrix(c.hidden_dim, c.dim);
        model.layers.push_back(layer);
    }
    model.final_norm = norm();
    model.output = c.tied_embeddings ? model.token_embedding : matrix(c.vocab_size, c.dim);
    model.owner = arrays;
    return model;
}

// ---- schedules: the same texts, cut into passes in different ways ----

using Texts = std::vector<std::vector<int32_t>>;

// `n_texts` texts, the first few long enough for several blocks of the KV cache.
Texts random_texts(int n_texts, std::initializer_list<int> lengths, const ModelConfig& config) {
    Random random(n_texts);
    Texts texts(n_texts);
    for (int i = 0; i < n_texts; ++i) {
        int length = i < static_cast<int>(lengths.size()) ? lengths.begin()[i] : 1 + i % 4 / 3;
        length = std::min(length, config.max_seq_len);
        for (int t = 0; t < length; ++t) {
            texts[i].push_back(random.between(0, config.vocab_size - 1));
        }
    }
    return texts;
}

struct Piece {
    int text;
    int n_tokens;  // as many as come next
};
using Schedule = std::vector<std::vector<Piece>>;  // passes

constexpr int kMaxRows = 64;

// `n` texts at a time, a token of each in a pass.
Schedule in_batches(const Texts& texts, int n) {
    Schedule schedule;
    const int n_texts = static_cast<int>(texts.size());
    for (int first = 0; first < n_texts; first += n) {
        for (size_t t = 0;; ++t) {
            std::vector<Piece> pass;
            for (int i = first; i < std::min(first + n, n_texts); ++i) {
                if (t < texts[i].size()) pass.push_back({i, 1});
            }
            if (pass.empty()) break;
            schedule.push_back(pass);
        }
    }
    return schedule;
}

// Every text in one piece, or as much of it as fits a pass.
Schedule prefilled(const Texts& texts) {
    Schedule schedule;
    for (int i = 0; i < static_cast<int>(texts.size()); ++i) {
        for (int left = static_cast<int>(texts[i].size()); left > 0; left -= kMaxRows) {
            schedule.push_back({{i, std::min(left, kMaxRows)}});
        }
    }
    return schedule;
}

// Texts join one after another, by pieces of 5 tokens, while those before go on token by token.
Schedule mixed(const Texts& texts) {
    Schedule schedule;
    std::vector<int> left;
    for (const auto& text : texts) left.push_back(static_cast<int>(text.size()));
    int joined = 0;
    while (std::accumulate(left.begin(), left.end(), 0) > 0) {
        std::vector<Piece> pass;
        for (int i = 0; i < joined; ++i) {
            if (left[i] > 0) pass.push_back({i, 1});
        }
        if (joined < static_cast<int>(texts.size())) {
            pass.push_back({joined, std::min(5, left[joined])});
            ++joined;
        }
        for (const Piece& piece : pass) left[piece.text] -= piece.n_tokens;
        if (!pass.empty()) schedule.push_back(pass);
    }
    return schedule;
}

// ---- logits ----

void run(CpuTransformer& transformer, const Batch& batch,
         Clock::time_point deadline = Clock::time_point::max()) {
    transformer.begin(batch);
    while (!transformer.advance(deadline)) {
    }
}

// The pass again for the logits of some rows, or of none, at once or layer by layer: the same as
// with all.
void check_some_rows(CpuTransformer& transformer, Batch batch) {
    const size_t vocab_size = transformer.config().vocab_size, rows = batch.rows.size();
    std::vector<std::vector<float>> expected;
    for (size_t r = 0; r < rows; ++r) {
        const float* logits = transformer.logits(static_cast<int>(r));
        expected.emplace_back(logits, logits + vocab_size);
    }
    Random random(static_cast<int>(rows));
    const double chance = rows % 3 * 0.4;
    batch.logit_rows.clear();
    for (size_t r = 0; r < rows; ++r) {
        const bool last = chance > 0 && r + 1 == rows;
        if (last || random.chance(chance)) batch.logit_rows.push_back(static_cast<int32_t>(r));
    }
    const bool at_once = (rows + batch.rows[0].position) % 2 == 0;
    run(transformer, batch, at_once ? Clock::time_point::max() : Clock::time_point::min());
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
        const float* logits = transformer.logits(static_cast<int>(i));
        CHECK(std::equal(logits, logits + vocab_size, expected[batch.logit_rows[i]].begin()),
              "row " << batch.logit_rows[i] << " of " << rows);
    }
}

// Of every token of every text, one after another.
std::vector<float> all_logits(const std::shared_ptr<Weights>& weights, KvType kv, int n_threads,
                              const Texts& texts, const Schedule& schedule) {
    const size_t vocab_size = weights->config().vocab_size;
    std::vector<size_t> starts;  // of each text's logits
    std::vector<std::vector<int32_t>> blocks;
    size_t n_tokens = 0;
    int n_blocks = 0;
    for (const auto& text : texts) {
        starts.push_back(n_tokens * vocab_size);
        n_tokens += text.size();
        std::vector<int32_t> table((text.size() + kBlockTokens - 1) / kBlockTokens);
        for (auto block = table.rbegin(); block != table.rend(); ++block) *block = n_blocks++;
        blocks.push_back(table);
    }
    CpuTransformer transformer(weights, kv, n_threads, kMaxRows, n_blocks);
    std::vector<float> logits(n_tokens * vocab_size);
    std::vector<int> done(texts.size());
    for (const auto& pass : schedule) {
        Batch batch;
        for (const Piece& piece : pass) {
            for (int t = 0; t < piece.n_tokens; ++t) {
                const int position = done[piece.text] + t;
                batch.logit_rows.push_back(static_cast<int32_t>(batch.rows.size()));
                batch.rows.push_back({texts[piece.text][position], position,
                                      static_cast<int32_t>(batch.block_tables.size())});
            }
            batch.block_tables.push_back(blocks[piece.text].data());
        }
        run(transformer, batch);
        int row = 0;
        for (const Piece& piece : pass) {
            for (int t = 0; t < piece.n_tokens; ++t, ++row) {
                const size_t at = starts[piece.text] + done[piece.text]++ * vocab_size;
                std::copy_n(transformer.logits(row), vocab_size, logits.data() + at);
            }
        }
        const bool check = &pass == &schedule.front() || &pass == &schedule.back();
        if (check) check_some_rows(transformer, batch);
    }
    return logits;
}

uint64_t hash(const std::vector<float>& values) {  // FNV-1a
    uint64_t result = 0xCBF29CE484222325u;
    for (const float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        result = (result ^ bits) * 0x100000001B3u;
    }
    return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<std::string> isas_to_test() {
    const char* forced = std::getenv("PYLLAMA2C_FORCE_ISA");
    if (forced != nullptr && *forced) return {forced};
    return supported_isas();
}

void test_model(const std::string& name, const ModelTensors& tensors, const Texts& texts,
                const std::vector<std::string>& isas) {
    const struct {
        const char* name;
        Schedule passes;
    } schedules[] = {
        {"batches of 1", in_batches(texts, 1)},   {"batches of 2", in_batches(texts, 2)},
        {"batches of 3", in_batches(texts, 3)},   {"batches of 8", in_batches(texts, 8)},
        {"batches of 64", in_batches(texts, 64)}, {"prefill", prefilled(texts)},
        {"prefill and decode", mixed(texts)},
    };
    constexpr KvType kv_types[] = {KvType::kFloat32, KvType::kFloat16, KvType::kInt8};
    const char* kv_names[] = {"float32", "float16", "int8"};
    for (const char* dtype : {"float32", "bfloat16", "int8", "int4"}) {
        std::vector<float> expected[3];  // by KvType
        for (const std::string& isa : isas) {
            setenv("PYLLAMA2C_FORCE_ISA", isa.c_str(), 1);
            const auto weights = std::make_shared<Weights>(tensors, weight_type(dtype, tensors), 2);
            for (int kv = 0; kv < 3; ++kv) {
                for (int i = 0; i < static_cast<int>(std::size(schedules)); ++i) {
                    const int n_threads = (i + kv) % 3 + 1;
                    const auto logits =
                        all_logits(weights, kv_types[kv], n_threads, texts, schedules[i].passes);
                    if (expected[kv].empty()) expected[kv] = logits;
                    CHECK(same_bits(logits, expected[kv]),
                          name << " " << dtype << " KV " << kv_names[kv] << " " << isa << " "
                               << schedules[i].name << " threads " << n_threads);
                }
            }
        }
        for (int kv = 0; kv < 3; ++kv) {
            for (const float x : expected[kv]) CHECK(std::isfinite(x), name << " " << dtype);
            std::printf("%s %s %s %016llx\n", name.c_str(), dtype, kv_names[kv],
                        static_cast<unsigned long long>(hash(expected[kv])));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const struct {
        const char* name;
        ModelConfig config;
        int group;  // as in a v2 file; 0: float32
        int n_texts;
    } models[] = {
        {"grouped-query-172", {64, 172, 2, 8, 4, 96, 64}, 0, 64},
        {"groups-of-32", {64, 172, 1, 4, 2, 96, 64}, 32, 20},
        {"heads-of-14", {42, 61, 2, 3, 3, 97, 33, 10000.0, 1e-5, false}, 0, 64},
        {"hidden-2268", {16, 2268, 1, 2, 1, 50, 64}, 0, 64},
        {"dim-512", {512, 40, 1, 8, 2, 50, 64}, 0, 5},  // from here int4 is int4 throughout
    };
    const auto isas = isas_to_test();
    if (find_kernels(isas.front().c_str()) == nullptr) {
        std::fprintf(stderr, "this CPU or build has no %s\n", isas.front().c_str());
        return 2;
    }
    for (const auto& model : models) {
        const auto texts = model.n_texts == 64
                               ? random_texts(64, {33, 18, 7}, model.config)
                               : random_texts(model.n_texts, {3, 6, 2}, model.config);
        test_model(model.name, random_model(model.config, model.group), texts, isas);
    }
    for (int i = 2; i < argc; ++i) {
        const std::string path = argv[i];
        const Checkpoint checkpoint = open_checkpoint(path);
        const auto texts = random_texts(std::atoi(argv[1]), {17, 3}, checkpoint.tensors.config);
        test_model(path.substr(path.rfind('/') + 1), checkpoint.tensors, texts, isas);
    }
    return check::finish("test_logits");
}
