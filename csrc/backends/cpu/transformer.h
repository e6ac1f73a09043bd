// The forward pass on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "backends/backend.h"
#include "backends/cpu/kv_cache.h"
#include "backends/rotary.h"
#include "base/buffer.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "model/weights.h"

namespace pyllama2c {

class CpuTransformer : public Backend {
  public:
    // Throws CapacityError where the memory cannot be reserved.
    CpuTransformer(std::shared_ptr<const Weights> weights, KvType kv_type, int n_threads,
                   int max_rows, int n_blocks);

    const ModelConfig& config() const override { return weights_->config(); }
    int max_rows() const override { return max_rows_; }
    int n_blocks() const override { return kv_.n_blocks(); }
    int n_threads() const override { return n_threads_; }
    void begin(const Batch& batch) override;
    bool advance(Clock::time_point deadline) override;
    float* logits(int i) override { return logits_.data() + i * logits_stride_; }
    void softmax(float* x, int n) const override { kernels_.softmax(x, n); }

    // Takes the memory of the KV cache now, not when a block is first written.
    void take_memory() { kv_.take_memory(); }

  private:
    void forward(Team& team, Clock::time_point deadline);
    void embed(Team& team);
    void attention(Team& team, int layer);
    void feed_forward(Team& team, int layer);
    void classify(Team& team);
    bool is_last(int layer) const { return layer + 1 == config().n_layers; }
    int rows_kept(int layer) const;
    // Where a row goes on once its layer's keys and values are stored, or -1.
    int place(int layer, int row) const { return is_last(layer) ? places_[row] : row; }
    void keep_rows(Items panels);
    bool has_own_heads(const Team& team) const;
    const char* first_weights(const Team& team, int layer) const;
    const char* if_far(const char* weights) const { return far_ ? weights : nullptr; }
    void store_keys_and_values(Team& team, int layer);
    void store_key_and_value(int layer, int head, int r);
    struct Queries {  // heads [first, first + n), of one head of keys and values, of some rows
        int first, n;
        int row, n_rows;
    };
    void attend(Team& team, int layer);
    int rows_together(int layer, int row) const;
    void attend(const Team& team, int layer, Queries now, Queries next);

    // Rows [begin, end), to be prepared `copy` rows further on in the buffers.
    struct Share {
        int begin, end;
        int copy;
    };
    // What a product takes: rows of floats or of int8, `stride` apart.
    struct Input {
        const float* x;
        size_t stride;
        const int8_t* q;
        const float* scales;
        const int32_t* sums;
    };
    static Share share_rows(const Team& team, int rows);
    Input norm(Team& team, int rows, const float* weight, const Matrix& next);
    Input input(Team& team, int rows, const Matrix& w, const float* x, size_t stride);
    Input quantize(const Share& share, const Matrix& w, const float* x, size_t stride);
    void multiply(Items panels, const Matrix& w, const Input& input, int rows, float* y,
                  size_t y_stride, bool accumulate, const char* next) const;
    static const char* weights_at(const Matrix& w, int panel) {
        return w.data + panel * w.panel_bytes();
    }
    int useful_threads(int rows) const;

    std::shared_ptr<const Weights> weights_;
    const KernelTable& kernels_;
    const int n_threads_;
    const int max_rows_;
    KvCache kv_;

    // Sizes, and strides of the buffers below, in floats.
    const int head_size_;
    const int n_heads_;
    const int n_kv_heads_;
    const int dim_;            // padded(dim)
    const int qkv_;            // padded(dim + 2 kv_dim)
    const int hidden_;         // padded(hidden_dim)
    const int logits_stride_;  // padded(vocab_size)

    const bool far_;  // the weights of a pass push keys and values out of the near cache

    Buffer<float> x_;         // [rows][dim_] residual stream
    Buffer<float> normed_;    // [rows][dim_]
    Buffer<float> qkv_rows_;  // [rows][qkv_] queries, keys, values
    Buffer<float> attended_;  // [rows][dim_]
    Buffer<float> gate_up_;   // [rows][2 * hidden_] 16 gates, 16 ups in turn
    Buffer<float> gated_;     // [rows][hidden_]
    Buffer<float> logits_;    // [rows][logits_stride_]
    // The input of the next product as int8, when its weights are quantized.
    const int q_stride_;
    const int q_groups_;                 // the most of any matrix
    Buffer<int8_t> q_;                   // [rows][q_stride_]
    Buffer<float> q_scales_;             // [rows][groups of the matrix]
    Buffer<int32_t> q_sums_;             // [rows][groups of the matrix]
    RotaryTables rotary_;                // filled as far as positions were used
    std::vector<Buffer<float>> scores_;  // per thread [kQueriesAtOnce][padded(max_seq_len)]
    std::vector<Buffer<int8_t>> q8_;     // per thread [kQueriesAtOnce][padded(head_size)]

    // The pass in progress.
    const Batch* batch_ = nullptr;
    std::vector<int> places_;  // of each row among logit_rows, or -1
    int layer_ = 0;            // the next one; n_layers: only the classifier is left
    bool out_of_time_ = false;
};

}  // namespace pyllama2c
