// A model's weights, packed for the kernels in one stretch of memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "model/config.h"
#include "model/matrix.h"
#include "model/tensors.h"

namespace pyllama2c {

struct LayerWeights {
    float* attention_norm = nullptr;  // [padded(dim)]
    Matrix qkv;                       // (dim + 2 kv_dim, dim): queries, keys, values
    Matrix wo;                        // (dim, dim)
    float* ffn_norm = nullptr;        // [padded(dim)]
    Matrix gate_up;                   // (2 padded(hidden_dim), dim): panels of w1 and w3 in turn
    Matrix down;                      // (dim, hidden_dim)
};

// How the matrices are to be kept. Norms are always float32; int4 keeps the embeddings int8, and in
// models narrower than 512, which have little to save and much to lose, all but gate_up.
enum class WeightType { kFloat32, kBFloat16, kInt8, kInt4 };

// "float32", "bfloat16", "int8" or "int4". Throws ArgumentError for any other name.
WeightType weight_type(const std::string& name);
// The same, or "auto": what the file stores (float16 becomes float32).
WeightType weight_type(const std::string& name, const ModelTensors& tensors);
const char* weight_type_name(WeightType type);

// Of the image's layout, which packed files hold: to be raised with every change of
// Weights::place() or Packing, so that files of the old layout are refused. docs/formats.md
// describes it, tests/test_packed_layout.py reads it.
constexpr int kPackingVersion = 1;
// What an image's address has to be a multiple of.
constexpr size_t kImageAlignment = 64;

class Weights {
  public:
    // Converts and packs every tensor on `n_threads` threads. The int8 values of a v2 file are
    // taken as they are where its groups are multiples of 16 that divide the rows. Throws
    // CheckpointError where a tensor's shape does not fit the config.
    Weights(const ModelTensors& tensors, WeightType type, int n_threads);

    // The image() of weights that were packed earlier, used where it lies; `owner` keeps it alive.
    // Throws CheckpointError where its size is not that of the config, type and group, or its
    // address is not aligned.
    Weights(const ModelConfig& config, WeightType type, int file_group, const void* image,
            size_t bytes, std::shared_ptr<void> owner);

    const ModelConfig& config() const { return config_; }
    WeightType type() const { return type_; }
    int file_group() const { return file_group_; }
    const Matrix& embedding() const { return embedding_; }
    const Matrix& output() const { return config_.tied_embeddings ? embedding_ : output_; }
    const float* final_norm() const { return final_norm_; }
    const LayerWeights& layer(int i) const { return layers_[i]; }

    // Writes the embedding of `token` to x [padded(dim)].
    void embed(int token, float* x) const;

    // All packed weights, byte for byte; the layout follows from config, type and file group.
    const char* image() const { return image_; }
    size_t nbytes() const { return nbytes_; }
    // Whether the image is somebody else's memory.
    bool borrowed() const { return owner_ != nullptr; }
    // Copies a borrowed image into huge pages of its own, on `n_threads` threads, and lets go of
    // the owner. Throws CapacityError where the memory cannot be had.
    void own(int n_threads);

  private:
    void place();
    void pack(const ModelTensors& tensors, int n_threads);

    ModelConfig config_;
    WeightType type_;
    int file_group_ = 0;  // of the v2 file whose int8 values were taken, or 0
    Pages memory_;
    std::shared_ptr<void> owner_;
    char* image_ = nullptr;
    size_t nbytes_ = 0;
    Matrix embedding_;
    Matrix output_;  // untied models only
    float* final_norm_ = nullptr;
    std::vector<LayerWeights> layers_;
};

}  // namespace pyllama2c
