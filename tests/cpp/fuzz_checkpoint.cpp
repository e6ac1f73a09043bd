// Hostile model files: whatever the bytes, parse_checkpoint either throws a CheckpointError or
// describes tensors that lie inside the file, and then packing needs no more memory than the file
// justifies. Run under ASan and UBSan, which notice every step outside. Deterministic; the first
// argument is the number of files.
#include <malloc.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "model/checkpoint.h"
#include "model/weights.h"
#include "random.h"

using namespace pyllama2c;

namespace {
size_t heap_now = 0;   // bytes that operator new has handed out
size_t heap_peak = 0;  // the most of them at once since this was last set
}  // namespace

// Not inlined, or GCC takes the malloc inside for a mistake of the caller's.
__attribute__((noinline)) void* operator new(size_t bytes) {
    void* p = std::malloc(bytes);
    if (p == nullptr) throw std::bad_alloc();
    heap_now += malloc_usable_size(p);
    heap_peak = std::max(heap_peak, heap_now);
    return p;
}
__attribute__((noinline)) void operator delete(void* p) noexcept {
    if (p != nullptr) heap_now -= malloc_usable_size(p);
    std::free(p);
}
void operator delete(void* p, size_t) noexcept { operator delete(p); }

namespace {

using Bytes = std::vector<unsigned char>;

template <typename T>
void append(Bytes& file, T value) {
    const size_t at = file.size();
    file.resize(at + sizeof value);
    std::memcpy(file.data() + at, &value, sizeof value);
}

void append_floats(Bytes& file, size_t n) {
    for (size_t i = 0; i < n; ++i) append(file, 0.01f * static_cast<float>(i % 17) - 0.08f);
}

void append_sizes(Bytes& file, const ModelConfig& c, bool negative_vocabulary) {
    const int vocab_size = negative_vocabulary ? -c.vocab_size : c.vocab_size;
    for (const int32_t value :
         {c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab_size, c.max_seq_len}) {
        append(file, value);
    }
}

// The number of elements of each kind of matrix over all layers, in the files' order.
std::vector<size_t> matrix_sizes(const ModelConfig& c) {
    const size_t dim = c.dim, kv = c.kv_dim(), hidden = c.hidden_dim;
    return {dim * dim, kv * dim, kv * dim, dim * dim, hidden * dim, hidden * dim, hidden * dim};
}

Bytes make_v0(const ModelConfig& c) {
    Bytes file;
    append_sizes(file, c, !c.tied_embeddings);
    size_t floats = static_cast<size_t>(c.vocab_size) * c.dim * (c.tied_embeddings ? 1 : 2);
    for (const size_t n : matrix_sizes(c)) floats += n * c.n_layers;
    floats += static_cast<size_t>(2 * c.n_layers + 1) * c.dim;
    floats += static_cast<size_t>(c.max_seq_len) * c.head_size();
    append_floats(file, floats);
    return file;
}

Bytes make_modern(const ModelConfig& c, int version, int group_size) {
    Bytes file;
    append<uint32_t>(file, 0x616B3432);
    append<int32_t>(file, version);
    append_sizes(file, c, false);
    append<uint8_t>(file, c.tied_embeddings);
    if (version == 2) append<int32_t>(file, group_size);
    file.resize(256);
    append_floats(file, static_cast<size_t>(2 * c.n_layers + 1) * c.dim);
    const auto matrix = [&](size_t n) {
        if (version == 1) return append_floats(file, n);
        for (size_t i = 0; i < n; ++i) append(file, static_cast<int8_t>(i * 37));
        append_floats(file, n / group_size);
    };
    matrix(static_cast<size_t>(c.vocab_size) * c.dim);
    for (const size_t n : matrix_sizes(c)) {
        for (int layer = 0; layer < c.n_layers; ++layer) matrix(n);
    }
    if (!c.tied_embeddings) matrix(static_cast<size_t>(c.vocab_size) * c.dim);
    return file;
}

ModelConfig config(int dim, int hidden, int layers, int heads, int kv_heads, int vocab, int context,
                   bool tied) {
    ModelConfig c;
    c.dim = dim;
    c.hidden_dim = hidden;
    c.n_layers = layers;
    c.n_heads = heads;
    c.n_kv_heads = kv_heads;
    c.vocab_size = vocab;
    c.max_seq_len = context;
    c.tied_embeddings = tied;
    return c;
}

const int32_t boundaries[] = {0,
                              1,
                              2,
                              3,
                              4,
                              -1,
                              -2,
                              7,
                              8,
                              16,
                              64,
                              255,
                              256,
                              257,
                              65535,
                              65536,
                              65537,
                              1 << 24,
                              1 << 26,
                              1 << 30,
                              (1 << 30) + 1,
                              0x7FFFFFFF,
                              -0x7FFFFFFF - 1,
                              -0x7FFFFFFF};

Bytes mutate(const Bytes& original, Random& random) {
    Bytes file = original;
    const size_t header = 64;
    for (int changes = random.between(1, 3); changes > 0; --changes) {
        if (file.empty()) break;
        const auto at = [&](size_t most) {
            return random.bits() % std::max<size_t>(1, std::min(file.size(), most));
        };
        const auto put = [&](size_t field, int32_t value) {
            if (file.size() >= field * 4 + 4) std::memcpy(file.data() + field * 4, &value, 4);
        };
        switch (random.between(0, 8)) {
            case 0:
                file[at(header)] ^= static_cast<unsigned char>(1u << random.between(0, 7));
                break;
            case 1: file[at(header)] = static_cast<unsigned char>(random.bits()); break;
            case 2:  // any int32 of the header
                put(random.between(0, 10),
                    boundaries[random.between(0, std::size(boundaries) - 1)]);
                break;
            case 3: put(random.between(0, 10), static_cast<int32_t>(random.bits())); break;
            case 4: put(random.between(0, 10), random.between(1, 40)); break;
            case 5: file.resize(at(file.size())); break;
            case 6: file.resize(file.size() + random.between(1, 300)); break;
            case 7: {  // v2's group size stands behind the byte at 36
                const int32_t group =
                    random.chance(0.5) ? random.between(-2, 200)
                                       : boundaries[random.between(0, std::size(boundaries) - 1)];
                if (file.size() >= 41) std::memcpy(file.data() + 37, &group, 4);
                break;
            }
            case 8: file[at(file.size())] ^= 0xFF; break;
        }
    }
    return file;
}

bool inside(const Tensor& tensor, const Bytes& file) {
    const unsigned char *begin = file.data(), *end = begin + file.size();
    const auto fits = [&](const unsigned char* p, uint64_t bytes) {
        return p >= begin && p <= end && bytes <= static_cast<uint64_t>(end - p);
    };
    const uint64_t elements = static_cast<uint64_t>(tensor.rows) * tensor.cols;
    if (tensor.dtype == DType::kFloat32) return fits(tensor.data, elements * 4);
    return tensor.dtype == DType::kInt8 && fits(tensor.data, elements) &&
           fits(tensor.scales, elements / tensor.group_size * 4);
}

// Packed: an int8 weight becomes a float, and a row may be alone in its panel of 16.
size_t most_packed(size_t file_size) { return 64 * file_size + 4096; }
// While packing: the lists of layers and of panels to fill, a few hundred bytes for each.
size_t most_heap(size_t file_size) { return 256 * file_size + 16384; }

enum class Result { kRefused, kParsed };

Result read(const Bytes& bytes) {
    // A heap block of exactly this size: ASan watches its borders.
    const Bytes file(bytes);
    const size_t heap_before = heap_peak = heap_now;
    const auto check_heap = [&] {
        CHECK(heap_peak - heap_before <= most_heap(file.size()),
              heap_peak - heap_before << " bytes of lists for a file of " << file.size());
    };
    try {
        const Checkpoint checkpoint = parse_checkpoint(file.data(), file.size());
        const ModelTensors& model = checkpoint.tensors;
        CHECK(inside(model.token_embedding, file) && inside(model.output, file) &&
              inside(model.final_norm, file));
        for (const LayerTensors& l : model.layers) {
            for (const Tensor* t : {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.ffn_norm,
                                    &l.w1, &l.w2, &l.w3}) {
                CHECK(inside(*t, file));
            }
        }
        constexpr WeightType types[] = {WeightType::kFloat32, WeightType::kBFloat16,
                                        WeightType::kInt8, WeightType::kInt4};
        const Weights weights(model, types[file.size() % 4], 1);
        CHECK(weights.nbytes() <= most_packed(file.size()),
              weights.nbytes() << " bytes packed from a file of " << file.size());
        check_heap();
        return Result::kParsed;
    } catch (const CheckpointError& error) {
        CHECK(std::strlen(error.what()) > 10);
        check_heap();
        return Result::kRefused;
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int n_files = argc > 1 ? std::atoi(argv[1]) : 200000;
    const std::vector<ModelConfig> configs = {
        config(8, 12, 2, 2, 1, 10, 6, true),  config(4, 6, 1, 1, 1, 4, 4, false),
        config(12, 7, 3, 2, 2, 20, 8, true),  config(2, 1, 1, 1, 1, 2, 1, false),
        config(16, 20, 1, 8, 4, 17, 9, true),
    };
    std::vector<Bytes> originals;
    for (const ModelConfig& c : configs) {
        originals.push_back(make_v0(c));
        originals.push_back(make_modern(c, 1, 0));
        for (const int group : {1, 2}) originals.push_back(make_modern(c, 2, group));
    }
    originals.push_back(make_modern(configs[0], 2, 8));  // groups straddle the rows of 12
    for (const Bytes& file : originals) CHECK(read(file) == Result::kParsed);
    for (const Bytes& file : originals) {  // every truncation
        for (size_t size = 0; size < file.size(); ++size) {
            CHECK(read(Bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size))) ==
                  Result::kRefused);
        }
    }

    Random random(20240229);
    long n_parsed = 0;
    double slowest = 0;
    for (int i = 0; i < n_files; ++i) {
        const auto start = std::chrono::steady_clock::now();
        const Bytes file = mutate(originals[random.bits() % originals.size()], random);
        n_parsed += read(file) == Result::kParsed;
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        slowest = std::max(slowest, took.count());
    }
    CHECK(slowest < 5, slowest << " s");
    // A mutation of the numbers or to an equivalent header still parses; most do not.
    CHECK(n_parsed > n_files / 100 && n_parsed < n_files / 2, n_parsed << " of " << n_files);
    std::printf("%d files, %ld parsed, slowest %.1f ms\n", n_files, n_parsed, slowest * 1e3);
    return check::finish("fuzz_checkpoint");
}
