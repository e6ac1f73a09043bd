// A model's tensors where they lie (in a mapped file, or in somebody's arrays), before packing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.h"

namespace pyllama2c {

enum class DType {
    kFloat32,
    kFloat16,
    kBFloat16,
    kInt8,  // value = int8 * scale of its group; groups run through the tensor from end to end
};

// A row-major matrix (rows, cols). Addresses need not be aligned: nothing in a v2 file is.
struct Tensor {
    DType dtype = DType::kFloat32;
    int64_t rows = 0;
    int64_t cols = 0;
    const unsigned char* data = nullptr;
    const unsigned char* scales = nullptr;  // kInt8: float32 [rows * cols / group_size]
    int64_t group_size = 0;                 // kInt8; a group may straddle rows

    // Writes row `row` as float32 to out[cols].
    void read_row(int64_t row, float* out) const;
};

struct LayerTensors {
    Tensor attention_norm;  // (1, dim)
    Tensor wq;              // (dim, dim)
    Tensor wk;              // (kv_dim, dim)
    Tensor wv;              // (kv_dim, dim)
    Tensor wo;              // (dim, dim)
    Tensor ffn_norm;        // (1, dim)
    Tensor w1;              // (hidden_dim, dim), the gate
    Tensor w2;              // (dim, hidden_dim), down
    Tensor w3;              // (hidden_dim, dim), up
};

struct ModelTensors {
    ModelConfig config;
    Tensor token_embedding;  // (vocab_size, dim)
    std::vector<LayerTensors> layers;
    Tensor final_norm;            // (1, dim)
    Tensor output;                // (vocab_size, dim); token_embedding itself when tied
    std::shared_ptr<void> owner;  // keeps the memory behind the tensors alive
};

}  // namespace pyllama2c
