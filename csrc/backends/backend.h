// The seam between what to compute (engine/) and how (cpu/, later cuda/): one forward pass over a
// batch of rows. A row is one token of one sequence at one position; its keys and values go to the
// KV cache through that sequence's block table, and it attends to everything before it there.
// A row's results depend on its own sequence alone, never on the rest of the batch.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "model/config.h"

namespace pyllama2c {

using Clock = std::chrono::steady_clock;

struct Row {
    int32_t token;
    int32_t position;
    int32_t sequence;  // index into Batch::block_tables
};

struct Batch {
    // At most Backend::max_rows(). Rows of a sequence stand together, each at the position after
    // the one before; all earlier positions are in the cache or in this batch.
    std::vector<Row> rows;
    std::vector<const int32_t*>
        block_tables;                 // per sequence: block number of tokens 16i .. 16i + 15
    std::vector<int32_t> logit_rows;  // rows whose logits are wanted, ascending

    void clear() {
        rows.clear();
        block_tables.clear();
        logit_rows.clear();
    }
};

class Backend {
  public:
    virtual ~Backend() = default;
    virtual const ModelConfig& config() const = 0;
    virtual int max_rows() const = 0;
    virtual int n_blocks() const = 0;   // of the KV cache, 16 tokens each
    virtual int n_threads() const = 0;  // of this process, that it may use

    // Starts a pass. The batch must stay as it is until advance() has returned true.
    virtual void begin(const Batch& batch) = 0;
    // Computes until the pass is done (true), or until the first layer that ends after the deadline
    // (false: call again to go on).
    virtual bool advance(Clock::time_point deadline) = 0;
    // Of the i-th of logit_rows, once done: [padded(vocab_size)], the caller may overwrite it.
    // Several threads may call this and softmax() at once.
    virtual float* logits(int i) = 0;

    // In-place softmax over n values with room for padded(n): the sampler's, with the same bits on
    // every CPU.
    virtual void softmax(float* x, int n) const = 0;
};

}  // namespace pyllama2c
