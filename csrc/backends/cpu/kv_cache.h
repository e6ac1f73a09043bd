// Keys and values of past tokens, in blocks of 16 tokens that block tables refer to by number.
// A block holds all layers and heads of its tokens, so that a short text touches little memory.
#pragma once

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace pyllama2c {

class KvCache {
  public:
    // Reserves address space; memory is taken when a block is first written.
    KvCache(const ModelConfig& config, int n_blocks)
        : head_size_(config.head_size()),
          n_kv_heads_(config.n_kv_heads),
          n_blocks_(n_blocks),
          block_bytes_(bytes_per_block(config)),
          pages_(block_bytes_ * n_blocks) {}

    static size_t bytes_per_block(const ModelConfig& config) {
        return head_bytes(config.head_size()) * config.n_kv_heads * config.n_layers;
    }

    int n_blocks() const { return n_blocks_; }
    size_t block_bytes() const { return block_bytes_; }

    // Block 0's keys of a head, [head_size][16 tokens] floats; block b's are b * block_bytes() on.
    char* keys(int layer, int head) const {
        const size_t index = static_cast<size_t>(layer) * n_kv_heads_ + head;
        return static_cast<char*>(pages_.data()) + index * head_bytes(head_size_);
    }
    // The values, [padded(head_size) / 16][16 tokens][16] floats.
    char* values(int layer, int head) const {
        return keys(layer, head) + sizeof(float) * head_size_ * kBlockTokens;
    }

    // Stores one token's k and v [head_size] of one head.
    void store(int layer, int head, int block, int slot, const float* k, const float* v) const {
        float* keys_at = reinterpret_cast<float*>(keys(layer, head) + block * block_bytes_);
        float* values_at = reinterpret_cast<float*>(values(layer, head) + block * block_bytes_);
        for (int d = 0; d < head_size_; ++d) {
            keys_at[d * kBlockTokens + slot] = k[d];
            values_at[(d / kLanes * kBlockTokens + slot) * kLanes + d % kLanes] = v[d];
        }
    }

  private:
    static size_t head_bytes(int head_size) {
        return sizeof(float) * kBlockTokens * (static_cast<size_t>(head_size) + padded(head_size));
    }

    int head_size_;
    int n_kv_heads_;
    int n_blocks_;
    size_t block_bytes_;
    Pages pages_;
};

}  // namespace pyllama2c
