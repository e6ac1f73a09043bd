// Weights: from a llama2.c file, or from arrays.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "backends/cpu/transformer.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/signals.h"
#include "model/checkpoint.h"
#include "model/fingerprint.h"
#include "model/weights.h"

namespace py = pybind11;

namespace pyllama2c {

namespace {

py::dict config_dict(const ModelConfig& c) {
    using namespace py::literals;
    return py::dict("dim"_a = c.dim, "hidden_dim"_a = c.hidden_dim, "n_layers"_a = c.n_layers,
                    "n_heads"_a = c.n_heads, "n_kv_heads"_a = c.n_kv_heads,
                    "vocab_size"_a = c.vocab_size, "max_seq_len"_a = c.max_seq_len,
                    "rope_theta"_a = c.rope_theta, "norm_eps"_a = c.norm_eps,
                    "tied_embeddings"_a = c.tied_embeddings);
}

ModelConfig config_from(const py::dict& d) {
    ModelConfig c;
    c.dim = d["dim"].cast<int>();
    c.hidden_dim = d["hidden_dim"].cast<int>();
    c.n_layers = d["n_layers"].cast<int>();
    c.n_heads = d["n_heads"].cast<int>();
    c.n_kv_heads = d["n_kv_heads"].cast<int>();
    c.vocab_size = d["vocab_size"].cast<int>();
    c.max_seq_len = d["max_seq_len"].cast<int>();
    c.rope_theta = d["rope_theta"].cast<double>();
    c.norm_eps = d["norm_eps"].cast<double>();
    c.tied_embeddings = d["tied_embeddings"].cast<bool>();
    c.validate();
    return c;
}

// A C-contiguous float32, float16 or (bfloat16 as) uint16 array as a tensor of one or two axes.
Tensor tensor_from(const py::dict& arrays, const std::string& name) {
    if (!arrays.contains(name)) throw CheckpointError("tensor " + name + " is missing");
    const py::array array = arrays[py::str(name)].cast<py::array>();
    Tensor tensor;
    const char kind = array.dtype().kind();
    const auto size = array.itemsize();
    if (kind == 'f' && size == 4) {
        tensor.dtype = DType::kFloat32;
    } else if (kind == 'f' && size == 2) {
        tensor.dtype = DType::kFloat16;
    } else if (kind == 'u' && size == 2) {
        tensor.dtype = DType::kBFloat16;
    } else {
        throw CheckpointError(text("tensor ", name, " is ",
                                   py::str(array.dtype()).cast<std::string>(),
                                   ", expected float32, float16, or bfloat16 as uint16"));
    }
    if ((array.flags() & py::array::c_style) == 0 || array.ndim() < 1 || array.ndim() > 2) {
        throw CheckpointError(text("tensor ", name, " must be C-contiguous, with one or two axes"));
    }
    tensor.rows = array.ndim() == 2 ? array.shape(0) : 1;
    tensor.cols = array.shape(array.ndim() - 1);
    tensor.data = static_cast<const unsigned char*>(array.data());
    return tensor;
}

ModelTensors tensors_from(const py::dict& config, const py::dict& arrays) {
    ModelTensors model;
    model.config = config_from(config);
    model.token_embedding = tensor_from(arrays, "tok_embeddings.weight");
    for (int i = 0; i < model.config.n_layers; ++i) {
        const std::string prefix = text("layers.", i, ".");
        const auto get = [&](const char* name) {
            return tensor_from(arrays, prefix + name + ".weight");
        };
        model.layers.push_back({get("attention_norm"), get("attention.wq"), get("attention.wk"),
                                get("attention.wv"), get("attention.wo"), get("ffn_norm"),
                                get("feed_forward.w1"), get("feed_forward.w2"),
                                get("feed_forward.w3")});
    }
    model.final_norm = tensor_from(arrays, "norm.weight");
    model.output =
        model.config.tied_embeddings ? model.token_embedding : tensor_from(arrays, "output.weight");
    return model;
}

// The first `n_read` of the tokens are going to be read, all of them must exist.
CpuTransformer transformer_for(const std::shared_ptr<Weights>& weights,
                               const std::vector<int32_t>& tokens, size_t n_read, KvType kv_type,
                               int n_threads, int chunk) {
    const ModelConfig& c = weights->config();
    if (n_read > static_cast<size_t>(c.max_seq_len)) {
        throw CapacityError(text("ids has ", tokens.size(), " tokens, at most ",
                                 c.max_seq_len + tokens.size() - n_read, " fit the context"));
    }
    for (const int32_t token : tokens) {
        if (token < 0 || token >= c.vocab_size) {
            throw ArgumentError(
                text("ids holds token ", token, ", expected 0 to ", c.vocab_size - 1));
        }
    }
    const int n = static_cast<int>(n_read);
    return CpuTransformer(weights, kv_type, n_threads, std::max(1, std::min(chunk, n)),
                          (n + kBlockTokens - 1) / kBlockTokens);
}

// Reads n tokens in chunks and calls each(i, logits) for every one of them in turn;
// logits [padded(vocab_size)] may be overwritten. Without the GIL, which `each` must not need.
template <typename Each>
void for_each_logits(CpuTransformer& transformer, const std::vector<int32_t>& tokens, size_t n,
                     Each each) {
    const size_t chunk = transformer.max_rows();
    std::vector<int32_t> blocks(transformer.n_blocks());
    std::iota(blocks.begin(), blocks.end(), 0);
    ReleaseGil released;
    SignalCheck interrupted(released);
    for (size_t start = 0; start < n; start += chunk) {
        Batch batch;
        batch.block_tables.push_back(blocks.data());
        for (size_t i = start; i < std::min(n, start + chunk); ++i) {
            batch.rows.push_back({tokens[i], static_cast<int32_t>(i), 0});
            batch.logit_rows.push_back(static_cast<int32_t>(i - start));
        }
        transformer.begin(batch);
        do {
            interrupted();
        } while (!transformer.advance(Clock::now() + std::chrono::milliseconds(50)));
        for (size_t i = 0; i < batch.rows.size(); ++i) {
            each(start + i, transformer.logits(static_cast<int>(i)));
        }
    }
}

// (len(tokens), vocab_size) float32
py::array_t<float> all_logits(const std::shared_ptr<Weights>& weights,
                              const std::vector<int32_t>& tokens, KvType kv_type, int n_threads,
                              int chunk) {
    const size_t n = tokens.size(), vocab_size = weights->config().vocab_size;
    CpuTransformer transformer = transformer_for(weights, tokens, n, kv_type, n_threads, chunk);
    py::array_t<float> result({n, vocab_size});
    float* out = result.mutable_data();
    for_each_logits(transformer, tokens, n, [&](size_t i, const float* logits) {
        std::copy_n(logits, vocab_size, out + i * vocab_size);
    });
    return result;
}

// (len(tokens) - 1) float32: log p(tokens[i + 1] | tokens[0 .. i])
py::array_t<float> log_probabilities(const std::shared_ptr<Weights>& weights,
                                     const std::vector<int32_t>& tokens, KvType kv_type,
                                     int n_threads, int chunk) {
    const size_t n = tokens.empty() ? 0 : tokens.size() - 1;
    CpuTransformer transformer = transformer_for(weights, tokens, n, kv_type, n_threads, chunk);
    const int vocab_size = weights->config().vocab_size;
    py::array_t<float> result(static_cast<py::ssize_t>(n));
    float* out = result.mutable_data();
    for_each_logits(transformer, tokens, n, [&](size_t i, float* logits) {
        // From the likeliest token's probability, which does not underflow.
        const size_t top = std::max_element(logits, logits + vocab_size) - logits;
        const double below_top = static_cast<double>(logits[tokens[i + 1]]) - logits[top];
        transformer.softmax(logits, vocab_size);
        out[i] = static_cast<float>(below_top + std::log(static_cast<double>(logits[top])));
    });
    return result;
}

}  // namespace

void register_model(py::module_& m) {
    py::enum_<KvType>(m, "KvType")
        .value("float32", KvType::kFloat32)
        .value("float16", KvType::kFloat16)
        .value("int8", KvType::kInt8);

    m.attr("PACKING_VERSION") = kPackingVersion;

    py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights", "A model's packed weights.")
        .def_static(
            "from_file",
            [](const std::filesystem::path& path, const std::string& dtype, int n_threads) {
                ReleaseGil released;
                const Checkpoint checkpoint = open_checkpoint(path.string());
                const WeightType type = weight_type(dtype, checkpoint.tensors);
                std::shared_ptr<Weights> weights;
                try {
                    weights = std::make_shared<Weights>(checkpoint.tensors, type, n_threads);
                } catch (const CheckpointError& error) {
                    throw CheckpointError(text(path.string(), ": ", error.what()));
                }
                const RetakeGil taken(released);
                py::dict about;
                about["version"] = checkpoint.version;
                about["group_size"] = checkpoint.group_size;
                return py::make_tuple(weights, about);
            },
            py::arg("path"), py::arg("dtype"), py::arg("n_threads"),
            "Read a llama2.c checkpoint (v0, v1, v2). Returns the weights and what the file is.")
        .def_static(
            "from_tensors",
            [](const py::dict& config, const py::dict& arrays, const std::string& dtype,
               int n_threads) {
                const ModelTensors tensors = tensors_from(config, arrays);
                const ReleaseGil release;
                return std::make_shared<Weights>(tensors, weight_type(dtype, tensors), n_threads);
            },
            py::arg("config"), py::arg("tensors"), py::arg("dtype"), py::arg("n_threads"),
            "Pack arrays under llama2.c's names: float32, float16, or bfloat16 as uint16.")
        .def_static(
            "from_image",
            [](const std::filesystem::path& path, size_t begin, size_t size, const py::dict& config,
               const std::string& dtype, int group_size, bool copy, int n_threads) {
                const ModelConfig sizes = config_from(config);
                const WeightType type = weight_type(dtype);
                const ReleaseGil release;
                const auto file = std::make_shared<MappedFile>(path.string());
                if (begin > file->size() || size > file->size() - begin) {
                    throw CheckpointError(text(path.string(), ": weights need ", size,
                                               " bytes at offset ", begin,
                                               ", but the file ends at ", file->size()));
                }
                auto weights = std::make_shared<Weights>(sizes, type, group_size,
                                                         file->data() + begin, size, file);
                if (copy) weights->own(n_threads);
                return weights;
            },
            py::arg("path"), py::arg("begin"), py::arg("size"), py::arg("config"), py::arg("dtype"),
            py::arg("group_size"), py::arg("copy"), py::arg("n_threads"),
            "Packed weights where they lie in a file, mapped or copied into huge pages.")
        .def_property_readonly(
            "image",
            [](const py::object& self) {
                const auto& w = self.cast<const Weights&>();
                py::array_t<uint8_t> bytes(static_cast<py::ssize_t>(w.nbytes()),
                                           reinterpret_cast<const uint8_t*>(w.image()), self);
                bytes.attr("setflags")(false);
                return bytes;
            },
            "uint8 (nbytes), read-only: all packed weights, what from_image() takes.")
        .def_property_readonly("mapped", &Weights::borrowed)
        .def_property_readonly("group_size", &Weights::file_group)
        .def_property_readonly("config", [](const Weights& w) { return config_dict(w.config()); })
        .def_property_readonly("nbytes", &Weights::nbytes)
        .def_property_readonly("dtype", [](const Weights& w) { return weight_type_name(w.type()); })
        .def(
            "kv_bytes_per_block",
            [](const Weights& w, KvType type) {
                return KvCache::bytes_per_block(w.config(), type);
            },
            py::arg("kv_type"))
        .def(
            "fingerprint", [](const Weights& w) { return fingerprint(w); },
            py::call_guard<ReleaseGil>(), "A 64-bit hash of config and weights.")
        .def("logits", &all_logits, py::arg("tokens"), py::arg("kv_type"), py::arg("n_threads"),
             py::arg("chunk"), "float32 logits (len(tokens), vocab_size).")
        .def("log_probabilities", &log_probabilities, py::arg("tokens"), py::arg("kv_type"),
             py::arg("n_threads"), py::arg("chunk"),
             "float32 (len(tokens) - 1): of each token but the first, given those before it.");
}

}  // namespace pyllama2c
