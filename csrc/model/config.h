// The sizes of a Llama model. Mirrors pyllama2c/config.py.
#pragma once

#include <cstdint>

namespace pyllama2c {

struct ModelConfig {
    int dim = 0;         // width of the residual stream
    int hidden_dim = 0;  // width of the feed-forward layer
    int n_layers = 0;
    int n_heads = 0;     // query heads
    int n_kv_heads = 0;  // key and value heads: n_heads / n_kv_heads queries share one
    int vocab_size = 0;
    int max_seq_len = 0;
    double rope_theta = 10000.0;
    double norm_eps = 1e-5;
    bool tied_embeddings = true;  // the classifier is the embedding table

    int head_size() const { return dim / n_heads; }
    int kv_dim() const { return head_size() * n_kv_heads; }

    // Throws CheckpointError naming the first field that is out of range, its value, and what
    // would work.
    void validate() const;
};

}  // namespace pyllama2c
