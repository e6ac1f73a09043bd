// Keys and values of past tokens, in blocks of 16 tokens that block tables refer to by number.
// A block holds all layers and heads of its tokens, so that a short text touches little memory.
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace pyllama2c {

class KvCache {
  public:
    // Reserves address space; memory is taken when a block is first written.
    KvCache(const ModelConfig& config, KvType type, int n_blocks)
        : type_(type),
          head_size_(config.head_size()),
          n_kv_heads_(config.n_kv_heads),
          n_blocks_(n_blocks),
          block_bytes_(bytes_per_block(config, type)),
          pages_(block_bytes_ * n_blocks) {}

    static size_t bytes_per_block(const ModelConfig& config, KvType type) {
        if (type == KvType::kInt8 && config.head_size() > kMaxGroup) {  // sums would overflow
            throw ArgumentError(text("kv_dtype is int8, expected float32 or float16 with heads of ",
                                     config.head_size(), ": int8 is exact up to ", kMaxGroup));
        }
        return head_bytes(type, config.head_size()) * config.n_kv_heads * config.n_layers;
    }

    // Takes all the memory now: a page that is written for the first time costs microseconds, a
    // huge one on a virtual machine milliseconds.
    void take_memory() {
        char* data = static_cast<char*>(pages_.data());
        for (size_t i = 0; i < block_bytes_ * n_blocks_; i += 4096) data[i] = 0;
    }

    KvType type() const { return type_; }
    int n_blocks() const { return n_blocks_; }
    size_t block_bytes() const { return block_bytes_; }

    // Keys and values of a head in block 0, laid out as KvType says; block b's are
    // b * block_bytes() further on.
    char* keys(int layer, int head) const {
        const size_t index = static_cast<size_t>(layer) * n_kv_heads_ + head;
        return static_cast<char*>(pages_.data()) + index * head_bytes(type_, head_size_);
    }
    char* values(int layer, int head) const {
        return keys(layer, head) + kv_key_bytes(type_, head_size_);
    }

  private:
    static size_t head_bytes(KvType type, int head_size) {
        return kv_key_bytes(type, head_size) + kv_value_bytes(type, head_size);
    }

    KvType type_;
    int head_size_;
    int n_kv_heads_;
    int n_blocks_;
    size_t block_bytes_;
    Pages pages_;
};

}  // namespace pyllama2c
