#include "model/checkpoint.h"

#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/mapped_file.h"

namespace pyllama2c {

namespace {

constexpr uint32_t kMagic = 0x616B3432;  // "ak42"
constexpr size_t kHeaderBytes = 256;     // of v1 and v2

// Walks through the file; every step is checked against its length before anything is used.
class Cursor {
  public:
    Cursor(const unsigned char* data, size_t size) : data_(data), size_(size) {}

    size_t size() const { return size_; }
    size_t position() const { return position_; }
    void seek(size_t position) { position_ = position; }

    template <typename T>
    T read(const char* field) {
        T value;
        std::memcpy(&value, take(field, sizeof value), sizeof value);
        return value;
    }

    // `count` items of `item` bytes.
    const unsigned char* take(const char* field, uint64_t count, uint64_t item = 1) {
        uint64_t bytes = 0;
        const bool overflow = __builtin_mul_overflow(count, item, &bytes);
        if (overflow || bytes > size_ - position_) {
            throw CheckpointError(text(
                field, " needs ", overflow ? std::string("more than 2^64") : std::to_string(bytes),
                " bytes at offset ", position_, ", but the file ends at ", size_,
                ": truncated, or a wrong header"));
        }
        const unsigned char* start = data_ + position_;
        position_ += bytes;
        return start;
    }

  private:
    const unsigned char* data_;
    size_t size_;
    size_t position_ = 0;
};

uint64_t product(uint64_t a, uint64_t b) {
    uint64_t result = 0;
    return __builtin_mul_overflow(a, b, &result) ? std::numeric_limits<uint64_t>::max() : result;
}

void read_sizes(Cursor& file, ModelConfig& config) {
    config.dim = file.read<int32_t>("dim");
    config.hidden_dim = file.read<int32_t>("hidden_dim");
    config.n_layers = file.read<int32_t>("n_layers");
    config.n_heads = file.read<int32_t>("n_heads");
    config.n_kv_heads = file.read<int32_t>("n_kv_heads");
    config.vocab_size = file.read<int32_t>("vocab_size");
    config.max_seq_len = file.read<int32_t>("max_seq_len");
}

struct Reader {
    Cursor& file;
    int group_size;  // 0: float32

    Tensor floats(const char* field, int64_t rows, int64_t cols) {
        return {DType::kFloat32, rows, cols, file.take(field, product(rows, cols), 4), nullptr, 0};
    }

    Tensor matrix(const char* field, int64_t rows, int64_t cols) {
        if (group_size == 0) return floats(field, rows, cols);
        const uint64_t elements = product(rows, cols);
        if (elements % group_size != 0) {
            throw CheckpointError(text("group_size is ", group_size, ", expected a divisor of ",
                                       field, "'s ", rows, " x ", cols, " elements"));
        }
        Tensor tensor{DType::kInt8, rows, cols, file.take(field, elements), nullptr, group_size};
        tensor.scales = file.take(field, elements / group_size, 4);
        return tensor;
    }

    // One tensor of each layer; `member` says which.
    void norms(ModelTensors& model, const char* field, Tensor LayerTensors::* member,
               int64_t cols) {
        for (LayerTensors& layer : model.layers) layer.*member = floats(field, 1, cols);
    }
    void matrices(ModelTensors& model, const char* field, Tensor LayerTensors::* member,
                  int64_t rows, int64_t cols) {
        for (LayerTensors& layer : model.layers) layer.*member = matrix(field, rows, cols);
    }
};

// Before the layers' descriptions are allocated: each layer has at least its norms in the file.
void allocate_layers(const Cursor& file, ModelTensors& model) {
    const ModelConfig& c = model.config;
    const uint64_t norms = product(product(c.n_layers, c.dim), 2 * sizeof(float));
    if (norms > file.size() - file.position()) {
        throw CheckpointError(text("n_layers is ", c.n_layers, " and dim ", c.dim,
                                   ": their norms alone need ", norms, " bytes, but the file has ",
                                   file.size()));
    }
    model.layers.resize(c.n_layers);
}

void read_legacy(Cursor& file, ModelTensors& model) {
    const ModelConfig& c = model.config;
    Reader reader{file, 0};
    allocate_layers(file, model);
    model.token_embedding = reader.matrix("token_embedding", c.vocab_size, c.dim);
    reader.norms(model, "attention_norm", &LayerTensors::attention_norm, c.dim);
    reader.matrices(model, "wq", &LayerTensors::wq, c.dim, c.dim);
    reader.matrices(model, "wk", &LayerTensors::wk, c.kv_dim(), c.dim);
    reader.matrices(model, "wv", &LayerTensors::wv, c.kv_dim(), c.dim);
    reader.matrices(model, "wo", &LayerTensors::wo, c.dim, c.dim);
    reader.norms(model, "ffn_norm", &LayerTensors::ffn_norm, c.dim);
    reader.matrices(model, "w1", &LayerTensors::w1, c.hidden_dim, c.dim);
    reader.matrices(model, "w2", &LayerTensors::w2, c.dim, c.hidden_dim);
    reader.matrices(model, "w3", &LayerTensors::w3, c.hidden_dim, c.dim);
    model.final_norm = reader.floats("final_norm", 1, c.dim);
    file.take("rotary tables", product(c.max_seq_len, c.head_size()), 4);
    model.output =
        c.tied_embeddings ? model.token_embedding : reader.matrix("output", c.vocab_size, c.dim);
}

void read_modern(Cursor& file, ModelTensors& model, int group_size) {
    const ModelConfig& c = model.config;
    Reader reader{file, group_size};
    allocate_layers(file, model);
    reader.norms(model, "attention_norm", &LayerTensors::attention_norm, c.dim);
    reader.norms(model, "ffn_norm", &LayerTensors::ffn_norm, c.dim);
    model.final_norm = reader.floats("final_norm", 1, c.dim);
    model.token_embedding = reader.matrix("token_embedding", c.vocab_size, c.dim);
    reader.matrices(model, "wq", &LayerTensors::wq, c.dim, c.dim);
    reader.matrices(model, "wk", &LayerTensors::wk, c.kv_dim(), c.dim);
    reader.matrices(model, "wv", &LayerTensors::wv, c.kv_dim(), c.dim);
    reader.matrices(model, "wo", &LayerTensors::wo, c.dim, c.dim);
    reader.matrices(model, "w1", &LayerTensors::w1, c.hidden_dim, c.dim);
    reader.matrices(model, "w2", &LayerTensors::w2, c.dim, c.hidden_dim);
    reader.matrices(model, "w3", &LayerTensors::w3, c.hidden_dim, c.dim);
    model.output =
        c.tied_embeddings ? model.token_embedding : reader.matrix("output", c.vocab_size, c.dim);
}

}  // namespace

Checkpoint parse_checkpoint(const unsigned char* data, size_t size) {
    Cursor file(data, size);
    Checkpoint checkpoint;
    ModelTensors& model = checkpoint.tensors;
    ModelConfig& config = model.config;
    if (file.read<uint32_t>("magic or dim") == kMagic) {
        checkpoint.version = file.read<int32_t>("version");
        if (checkpoint.version != 1 && checkpoint.version != 2) {
            throw CheckpointError(text("version is ", checkpoint.version, ", expected 1 or 2"));
        }
        read_sizes(file, config);
        const int tied = file.read<uint8_t>("shared_classifier");
        if (tied > 1)
            throw CheckpointError(text("shared_classifier is ", tied, ", expected 0 or 1"));
        config.tied_embeddings = tied == 1;
        config.validate();
        if (checkpoint.version == 2) {
            checkpoint.group_size = file.read<int32_t>("group_size");
            if (checkpoint.group_size < 1) {
                throw CheckpointError(
                    text("group_size is ", checkpoint.group_size, ", expected at least 1"));
            }
        }
        file.take("header", kHeaderBytes - file.position());
        read_modern(file, model, checkpoint.group_size);
    } else {
        file.seek(0);
        read_sizes(file, config);
        config.tied_embeddings = config.vocab_size > 0;
        if (config.vocab_size < 0 && config.vocab_size != std::numeric_limits<int32_t>::min()) {
            config.vocab_size = -config.vocab_size;
        }
        try {
            config.validate();
        } catch (const CheckpointError& error) {
            throw CheckpointError(text("no llama2.c checkpoint (no 'ak42' magic, and read as v0, ",
                                       error.what(), ")"));
        }
        read_legacy(file, model);
    }
    if (file.position() != size) {
        throw CheckpointError(text("the file has ", size, " bytes, expected ", file.position(),
                                   " by its header: it is no v", checkpoint.version,
                                   " checkpoint, or something was appended"));
    }
    return checkpoint;
}

Checkpoint open_checkpoint(const std::string& path) {
    auto file = std::make_shared<MappedFile>(path);
    try {
        Checkpoint checkpoint = parse_checkpoint(file->data(), file->size());
        checkpoint.tensors.owner = file;
        return checkpoint;
    } catch (const CheckpointError& error) {
        throw CheckpointError(path + ": " + error.what());
    }
}

}  // namespace pyllama2c
