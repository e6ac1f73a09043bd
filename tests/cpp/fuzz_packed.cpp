// Hostile sizes of packed weights: whatever a header says, Weights either throws a CheckpointError
// or finds every matrix and norm inside the image, aligned. Deterministic; the first argument is
// the number of headers.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "model/weights.h"
#include "random.h"

using namespace pyllama2c;

namespace {

struct Header {
    ModelConfig config;
    WeightType type;
    int group;

    Weights open(const char* image, size_t bytes, std::shared_ptr<void> owner = nullptr) const {
        return Weights(config, type, group, image, bytes, std::move(owner));
    }
};

struct Free {
    void operator()(char* p) const { std::free(p); }
};
using Image = std::unique_ptr<char, Free>;

// Of exactly this size: the address sanitizer watches its borders.
Image make_image(size_t bytes) {
    char* image = static_cast<char*>(std::aligned_alloc(kImageAlignment, bytes));
    for (size_t i = 0; i < bytes; ++i) image[i] = static_cast<char>(i * 37);
    return Image(image);
}

ModelConfig config(int dim, int hidden, int layers, int heads, int kv_heads, int vocab, bool tied) {
    ModelConfig c;
    c.dim = dim;
    c.hidden_dim = hidden;
    c.n_layers = layers;
    c.n_heads = heads;
    c.n_kv_heads = kv_heads;
    c.vocab_size = vocab;
    c.max_seq_len = 8;
    c.tied_embeddings = tied;
    return c;
}

int number(Random& random) {
    static const int boundaries[] = {-1,      0,       15,         16,
                                     17,      48,      511,        512,
                                     513,     32768,   65535,      65536,
                                     1 << 20, 1 << 23, 1 << 24,    1 << 30,
                                     -16,     65552,   0x7FFFFFFF, std::numeric_limits<int>::min()};
    if (random.chance(0.5)) return random.between(1, 40);
    return boundaries[random.between(0, std::size(boundaries) - 1)];
}

void mutate(Header& header, Random& random) {
    ModelConfig& c = header.config;
    for (int changes = random.between(0, 3); changes > 0; --changes) {
        int* const fields[] = {&c.dim,        &c.hidden_dim, &c.n_layers,    &c.n_heads,
                               &c.n_kv_heads, &c.vocab_size, &c.max_seq_len, &header.group};
        const int field = random.between(0, 9);
        if (field < 8) *fields[field] = number(random);
        if (field == 8) c.tied_embeddings = !c.tied_embeddings;
        if (field == 9) header.type = static_cast<WeightType>(random.between(0, 3));
    }
}

// The image that the header asks for, or 0 where it is refused whatever the image.
size_t size_of(const Header& header) {
    try {
        header.open(nullptr, 1);
    } catch (const CheckpointError& error) {
        const std::string why = error.what(), before = "packed weights have 1 bytes, expected ";
        if (why.find(before) == 0) return std::stoull(why.substr(before.size()));
    }
    return 0;
}

bool inside(const void* p, size_t bytes, const char* image, size_t size) {
    const char* begin = static_cast<const char*>(p);
    return begin >= image && begin <= image + size &&
           bytes <= static_cast<size_t>(image + size - begin) &&
           reinterpret_cast<uintptr_t>(begin) % kImageAlignment == 0;
}

void check_places(const Weights& w, const char* image, size_t size) {
    const auto matrix = [&](const Matrix& m) {
        CHECK(inside(m.data, m.panels * m.panel_bytes(), image, size));
        CHECK(inside(m.scales, m.panels * m.panel_scale_bytes(), image, size));
    };
    const auto norm = [&](const float* values) {
        CHECK(inside(values, padded(w.config().dim) * sizeof(float), image, size));
    };
    matrix(w.embedding());
    matrix(w.output());
    norm(w.final_norm());
    for (int i = 0; i < w.config().n_layers; ++i) {
        const LayerWeights& layer = w.layer(i);
        norm(layer.attention_norm);
        norm(layer.ffn_norm);
        for (const Matrix* m : {&layer.qkv, &layer.wo, &layer.gate_up, &layer.down}) matrix(*m);
    }
    std::vector<float> row(padded(w.config().dim));
    w.embed(w.config().vocab_size - 1, row.data());
}

void check_copy(const Header& header, const char* image, size_t size) {
    auto owner = std::make_shared<int>();
    Weights weights = header.open(image, size, owner);
    CHECK(weights.borrowed() && owner.use_count() == 2);
    const ptrdiff_t place = weights.embedding().data - image;
    weights.own(2);
    CHECK(!weights.borrowed() && owner.use_count() == 1 && weights.image() != image);
    CHECK(std::equal(image, image + size, weights.image()));
    CHECK(weights.embedding().data == weights.image() + place);
}

}  // namespace

int main(int argc, char** argv) {
    const int n_headers = argc > 1 ? std::atoi(argv[1]) : 20000;
    const ModelConfig configs[] = {
        config(8, 12, 2, 2, 1, 10, true),   config(4, 6, 1, 1, 1, 4, false),
        config(48, 80, 3, 4, 2, 33, true),  config(2, 1, 1, 1, 1, 2, false),
        config(512, 20, 1, 8, 4, 17, true),
    };
    Random random(20240301);
    int n_accepted = 0, n_resized = 0;
    for (int i = 0; i < n_headers; ++i) {
        const Header original{configs[random.between(0, std::size(configs) - 1)],
                              static_cast<WeightType>(random.between(0, 3)),
                              random.chance(0.3) ? 16 : 0};
        const size_t size = size_of(original);
        const Image image = make_image(size);
        if (i % 100 == 0) check_copy(original, image.get(), size);
        Header header = original;
        mutate(header, random);
        try {
            check_places(header.open(image.get(), size), image.get(), size);
            ++n_accepted;
        } catch (const CheckpointError&) {
            const size_t wanted = size_of(header);
            if (wanted == 0 || wanted > size_t{16} << 20) continue;
            const Image other = make_image(wanted + kImageAlignment);
            check_places(header.open(other.get(), wanted), other.get(), wanted);
            CHECK_THROWS(header.open(other.get() + 1, wanted), CheckpointError);
            ++n_resized;
        }
    }
    CHECK(n_accepted > n_headers / 10 && n_accepted < n_headers, n_accepted);
    CHECK(n_resized > n_headers / 100, n_resized);
    std::printf("%d headers, %d accepted, %d with another image\n", n_headers, n_accepted,
                n_resized);
    return check::finish("fuzz_packed");
}
