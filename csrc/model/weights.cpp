#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace pyllama2c {

namespace {

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

// A panel to fill: where each of its 16 rows comes from.
struct Panel {
    float* to;
    int64_t cols;
    struct {
        const Tensor* tensor;  // nullptr: a row of zeros
        int64_t row;
    } rows[kLanes];
};

// The work list of packing, panel by panel, so that threads can share it.
class Packer {
  public:
    // Rows of the tensors one after another, then padding.
    void stack(const Matrix& to, std::initializer_list<const Tensor*> parts) {
        int64_t filled = 0;
        const size_t first = append_panels(to);
        for (const Tensor* part : parts) {
            for (int64_t row = 0; row < part->rows; ++row, ++filled) {
                panels_[first + filled / kLanes].rows[filled % kLanes] = {part, row};
            }
        }
    }

    // Panels of a and b in turn, each padded on its own.
    void interleave(const Matrix& to, const Tensor& a, const Tensor& b) {
        const size_t first = append_panels(to);
        for (int64_t row = 0; row < a.rows; ++row) {
            const size_t pair = first + row / kLanes * 2;
            panels_[pair].rows[row % kLanes] = {&a, row};
            panels_[pair + 1].rows[row % kLanes] = {&b, row};
        }
    }

    void run(int n_threads) {
        std::atomic<size_t> next{0};
        int64_t widest = 0;
        for (const Panel& panel : panels_) widest = std::max(widest, panel.cols);
        std::vector<Buffer<float>> scratch(n_threads);
        for (Buffer<float>& rows : scratch) rows = Buffer<float>(widest * kLanes);
        parallel(n_threads, [&](Team& team) {
            float* rows = scratch[team.rank()].data();
            for (size_t i = next++; i < panels_.size(); i = next++) pack(panels_[i], rows);
        });
    }

  private:
    size_t append_panels(const Matrix& to) {
        const size_t first = panels_.size();
        for (int p = 0; p < to.panels; ++p) {
            panels_.push_back({to.data + static_cast<size_t>(p) * to.k * kLanes, to.k, {}});
        }
        return first;
    }

    // rows: scratch [16][cols]
    static void pack(const Panel& panel, float* rows) {
        const int64_t cols = panel.cols;
        for (int lane = 0; lane < kLanes; ++lane) {
            float* row = rows + lane * cols;
            const auto& source = panel.rows[lane];
            if (source.tensor != nullptr) {
                source.tensor->read_row(source.row, row);
            } else {
                std::fill_n(row, cols, 0.0f);
            }
        }
        for (int64_t i = 0; i < cols; ++i) {
            for (int lane = 0; lane < kLanes; ++lane) {
                panel.to[i * kLanes + lane] = rows[lane * cols + i];
            }
        }
    }

    std::vector<Panel> panels_;
};

}  // namespace

// Hands every tensor its place; `take(count)` gives the address of the next `count` floats.
template <typename Take>
void Weights::place(Take take) {
    const ModelConfig& c = config_;
    const auto matrix = [&](int64_t n, int64_t k) {
        const int panels = padded(static_cast<int>(n)) / kLanes;
        return Matrix{static_cast<int>(n), static_cast<int>(k), panels,
                      take(static_cast<size_t>(panels) * k * kLanes)};
    };
    embedding_ = matrix(c.vocab_size, c.dim);
    for (LayerWeights& layer : layers_) {
        layer.attention_norm = take(padded(c.dim));
        layer.qkv = matrix(c.dim + 2 * c.kv_dim(), c.dim);
        layer.wo = matrix(c.dim, c.dim);
        layer.ffn_norm = take(padded(c.dim));
        layer.gate_up = matrix(2 * padded(c.hidden_dim), c.dim);
        layer.down = matrix(c.dim, c.hidden_dim);
    }
    final_norm_ = take(padded(c.dim));
    if (!c.tied_embeddings) output_ = matrix(c.vocab_size, c.dim);
}

Weights::Weights(const ModelTensors& tensors, int n_threads) : config_(tensors.config) {
    check_shapes(tensors);
    layers_.resize(config_.n_layers);
    size_t total = 0;
    place([&](size_t count) {
        total += count;
        return nullptr;
    });
    memory_ = Buffer<float>(total);
    float* next = memory_.data();
    place([&](size_t count) {
        float* start = next;
        next += count;
        return start;
    });

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
    packer.run(n_threads);
}

void Weights::embed(int token, float* x) const {
    const float* column = embedding_.data +
                          static_cast<size_t>(token / kLanes) * embedding_.k * kLanes +
                          token % kLanes;
    for (int i = 0; i < embedding_.k; ++i) x[i] = column[static_cast<size_t>(i) * kLanes];
    for (int i = embedding_.k; i < padded(embedding_.k); ++i) x[i] = 0.0f;
}

size_t Weights::bytes_per_token() const {
    const size_t embedding = static_cast<size_t>(embedding_.panels) * embedding_.k * kLanes;
    return memory_.nbytes() - (config_.tied_embeddings ? 0 : embedding * sizeof(float));
}

}  // namespace pyllama2c
