#include "model/weights.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "model/packer.h"

namespace pyllama2c {

namespace {

constexpr int kNarrow = 512;  // int4 below this width keeps attention and down int8
constexpr size_t kMostBytes = size_t{1} << 52;

void check_shape(const char* name, const Tensor& tensor, int64_t rows, int64_t cols) {
    if (tensor.rows != rows || tensor.cols != cols) {
        throw CheckpointError(text(name, " is (", tensor.rows, ", ", tensor.cols, "), expected (",
                                   rows, ", ", cols, ")"));
    }
}

void check_shapes(const ModelTensors& model) {
    const ModelConfig& c = model.config;
    c.validate();
    check_shape("token_embedding", model.token_embedding, c.vocab_size, c.dim);
    check_shape("final_norm", model.final_norm, 1, c.dim);
    check_shape("output", model.output, c.vocab_size, c.dim);
    if (model.layers.size() != static_cast<size_t>(c.n_layers)) {
        throw CheckpointError(text(model.layers.size(), " layers, expected ", c.n_layers));
    }
    for (const LayerTensors& layer : model.layers) {
        check_shape("attention_norm", layer.attention_norm, 1, c.dim);
        check_shape("wq", layer.wq, c.dim, c.dim);
        check_shape("wk", layer.wk, c.kv_dim(), c.dim);
        check_shape("wv", layer.wv, c.kv_dim(), c.dim);
        check_shape("wo", layer.wo, c.dim, c.dim);
        check_shape("ffn_norm", layer.ffn_norm, 1, c.dim);
        check_shape("w1", layer.w1, c.hidden_dim, c.dim);
        check_shape("w2", layer.w2, c.dim, c.hidden_dim);
        check_shape("w3", layer.w3, c.hidden_dim, c.dim);
    }
}

// As docs/formats.md calls it.
std::string name_of(const Tensor& tensor, const ModelTensors& model) {
    if (&tensor == &model.token_embedding) return "tok_embeddings.weight";
    if (&tensor == &model.output) return "output.weight";
    for (size_t i = 0; i < model.layers.size(); ++i) {
        const LayerTensors& layer = model.layers[i];
        const std::pair<const Tensor*, const char*> parts[] = {
            {&layer.wq, "attention.wq"},    {&layer.wk, "attention.wk"},
            {&layer.wv, "attention.wv"},    {&layer.wo, "attention.wo"},
            {&layer.w1, "feed_forward.w1"}, {&layer.w2, "feed_forward.w2"},
            {&layer.w3, "feed_forward.w3"}};
        for (const auto& [part, name] : parts) {
            if (&tensor == part) return text("layers.", i, ".", name, ".weight");
        }
    }
    return "unknown";
}

// The group of a v2 file, where the kernels can work with it.
int usable_group(const ModelTensors& tensors, WeightType type) {
    const Tensor& first = tensors.token_embedding;
    const int64_t group = first.group_size;
    const bool usable = type == WeightType::kInt8 && first.dtype == DType::kInt8 &&
                        group % kLanes == 0 && group <= kMaxGroup;
    return usable ? static_cast<int>(group) : 0;
}

}  // namespace

const char* weight_type_name(WeightType type) {
    switch (type) {
        case WeightType::kFloat32: return "float32";
        case WeightType::kBFloat16: return "bfloat16";
        case WeightType::kInt8: return "int8";
        case WeightType::kInt4: return "int4";
    }
    return "unknown";
}

WeightType weight_type(const std::string& name, const ModelTensors& tensors) {
    if (name != "auto") return weight_type(name);
    if (tensors.token_embedding.dtype == DType::kInt8) return WeightType::kInt8;
    // What holds every matrix; the norms are float32 anyway.
    std::vector<const Tensor*> matrices = {&tensors.token_embedding, &tensors.output};
    for (const LayerTensors& layer : tensors.layers) {
        matrices.insert(matrices.end(), {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.w1,
                                         &layer.w2, &layer.w3});
    }
    const bool all_bfloat16 =
        std::all_of(matrices.begin(), matrices.end(),
                    [](const Tensor* matrix) { return matrix->dtype == DType::kBFloat16; });
    return all_bfloat16 ? WeightType::kBFloat16 : WeightType::kFloat32;
}

WeightType weight_type(const std::string& name) {
    for (const WeightType type :
         {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kInt8, WeightType::kInt4}) {
        if (name == weight_type_name(type)) return type;
    }
    throw ArgumentError(
        text("dtype is '", name, "', expected auto, float32, bfloat16, int8 or int4"));
}

// Gives every tensor its place: offsets from image_, which may still be null. The one description
// of the layout.
void Weights::place() {
    const ModelConfig& c = config_;
    size_t offset = 0;
    const auto take = [&](size_t bytes) {
        char* start = image_ == nullptr ? nullptr : image_ + offset;
        offset += (bytes + kImageAlignment - 1) / kImageAlignment * kImageAlignment;
        if (offset > kMostBytes) {  // a single tensor is below 2^52: no sum has wrapped around
            throw CheckpointError("the sizes of the config make more than 2^52 bytes of weights");
        }
        return start;
    };
    const auto norm = [&] { return reinterpret_cast<float*>(take(padded(c.dim) * sizeof(float))); };
    const auto matrix = [&](int n, int k, bool may_be_int4) {
        Matrix m;
        m.n = n;
        m.k = k;
        m.panels = padded(n) / kLanes;
        switch (type_) {
            case WeightType::kFloat32: m.packing = Packing::kFloat32; break;
            case WeightType::kBFloat16: m.packing = Packing::kBFloat16; break;
            case WeightType::kInt8: m.packing = Packing::kInt8; break;
            case WeightType::kInt4:
                m.packing = may_be_int4 ? Packing::kInt4 : Packing::kInt8;
                break;
        }
        if (m.packing == Packing::kInt4) {
            m.group = kInt4Group;
        } else if (m.packing == Packing::kInt8) {
            m.group_scales = file_group_ != 0 && k % file_group_ == 0;
            m.group = m.group_scales ? file_group_ : std::min(padded(k), kMaxGroup);
        }
        m.data = take(m.panels * m.panel_bytes());
        m.scales = take(m.panels * m.panel_scale_bytes());
        return m;
    };
    const bool wide = c.dim >= kNarrow;
    embedding_ = matrix(c.vocab_size, c.dim, false);
    for (LayerWeights& layer : layers_) {
        layer.attention_norm = norm();
        layer.qkv = matrix(c.dim + 2 * c.kv_dim(), c.dim, wide);
        layer.wo = matrix(c.dim, c.dim, wide);
        layer.ffn_norm = norm();
        layer.gate_up = matrix(2 * padded(c.hidden_dim), c.dim, true);
        layer.down = matrix(c.dim, c.hidden_dim, wide);
    }
    final_norm_ = norm();
    if (!c.tied_embeddings) output_ = matrix(c.vocab_size, c.dim, false);
    nbytes_ = offset;
}

Weights::Weights(const ModelTensors& tensors, WeightType type, int n_threads)
    : config_(tensors.config), type_(type), file_group_(usable_group(tensors, type)) {
    check_shapes(tensors);
    layers_.resize(config_.n_layers);
    place();
    memory_ = Pages(nbytes_);
    image_ = static_cast<char*>(memory_.data());
    place();
    pack(tensors, n_threads);
}

Weights::Weights(const ModelConfig& config, WeightType type, int file_group, const void* image,
                 size_t bytes, std::shared_ptr<void> owner)
    : config_(config), type_(type), file_group_(file_group), owner_(std::move(owner)) {
    config_.validate();
    if (file_group < 0 || file_group % kLanes != 0 || file_group > kMaxGroup) {
        throw CheckpointError(text("group_size is ", file_group, ", expected a multiple of 16"));
    }
    layers_.resize(config_.n_layers);
    place();
    if (bytes != nbytes_) {
        throw CheckpointError(text("packed weights have ", bytes, " bytes, expected ", nbytes_));
    }
    if (reinterpret_cast<uintptr_t>(image) % kImageAlignment != 0) {
        throw CheckpointError(
            text("packed weights are not aligned to ", kImageAlignment, " bytes"));
    }
    image_ = static_cast<char*>(const_cast<void*>(image));  // nobody writes to it
    place();
}

void Weights::own(int n_threads) {
    if (!borrowed()) return;
    constexpr size_t kPart = size_t{1} << 21;  // whole huge pages: each is zeroed by who fills it
    Pages memory(nbytes_);
    char* to = static_cast<char*>(memory.data());
    parallel(n_threads, [&](Team& team) {
        const auto parts = team.share(static_cast<int>((nbytes_ + kPart - 1) / kPart));
        const size_t begin = parts.first * kPart, end = std::min(parts.second * kPart, nbytes_);
        if (begin < end) std::memcpy(to + begin, image_ + begin, end - begin);
    });
    memory_ = std::move(memory);
    image_ = to;
    owner_.reset();
    place();
}

void Weights::pack(const ModelTensors& tensors, int n_threads) {
    Packer packer;
    packer.stack(embedding_, {&tensors.token_embedding});
    for (int i = 0; i < config_.n_layers; ++i) {
        const LayerTensors& from = tensors.layers[i];
        LayerWeights& to = layers_[i];
        from.attention_norm.read_row(0, to.attention_norm);
        from.ffn_norm.read_row(0, to.ffn_norm);
        packer.stack(to.qkv, {&from.wq, &from.wk, &from.wv});
        packer.stack(to.wo, {&from.wo});
        packer.interleave(to.gate_up, from.w1, from.w3);
        packer.stack(to.down, {&from.w2});
    }
    tensors.final_norm.read_row(0, final_norm_);
    if (!config_.tied_embeddings) packer.stack(output_, {&tensors.output});
    const Tensor* not_held = packer.run(n_threads);
    if (not_held != nullptr) {
        const bool bfloat16 = type_ == WeightType::kBFloat16, int4 = type_ == WeightType::kInt4;
        throw CheckpointError(
            text("tensor ", name_of(*not_held, tensors), " holds ",
                 bfloat16 ? "a number beyond 3.39e38" : "an infinity or a NaN",
                 int4 ? text(", or a number beyond ", kLargestInt4) : "", ", which ",
                 weight_type_name(type_), " cannot: expected dtype float32",
                 bfloat16 ? "" : " or bfloat16", int4 ? ", or int8 for finite numbers" : ""));
    }
}

void Weights::embed(int token, float* x) const {
    embedding_.read_row(token, x);
    std::fill(x + config_.dim, x + padded(config_.dim), 0.0f);
}

}  // namespace pyllama2c
