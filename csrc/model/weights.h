// A model's weights, packed for the kernels: panels of 16 output rows, in one stretch of memory.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "model/config.h"
#include "model/tensors.h"

namespace pyllama2c {

// y = W x with W (n, k): [panels][k][16] floats, rows beyond n zero.
struct Matrix {
    int n = 0;       // outputs
    int k = 0;       // inputs
    int panels = 0;  // ceil(n / 16)
    float* data = nullptr;
};

struct LayerWeights {
    float* attention_norm = nullptr;  // [padded(dim)]
    Matrix qkv;                       // (dim + 2 kv_dim, dim): queries, keys, values
    Matrix wo;                        // (dim, dim)
    float* ffn_norm = nullptr;        // [padded(dim)]
    Matrix gate_up;                   // (2 padded(hidden_dim), dim): panels of w1 and w3 in turn
    Matrix down;                      // (dim, hidden_dim)
};

class Weights {
  public:
    // Converts and packs every tensor on `n_threads` threads. Throws CheckpointError where a
    // tensor's shape does not fit the config.
    Weights(const ModelTensors& tensors, int n_threads);

    const ModelConfig& config() const { return config_; }
    const Matrix& embedding() const { return embedding_; }
    const Matrix& output() const { return config_.tied_embeddings ? embedding_ : output_; }
    const float* final_norm() const { return final_norm_; }
    const LayerWeights& layer(int i) const { return layers_[i]; }

    // Writes the embedding of `token` to x [padded(dim)].
    void embed(int token, float* x) const;

    size_t nbytes() const { return memory_.nbytes(); }
    // What one decoded token reads: every weight but the embedding rows of other tokens.
    size_t bytes_per_token() const;

  private:
    template <typename Take>
    void place(Take take);

    ModelConfig config_;
    Buffer<float> memory_;
    Matrix embedding_;
    Matrix output_;  // untied models only
    float* final_norm_ = nullptr;
    std::vector<LayerWeights> layers_;
};

}  // namespace pyllama2c
