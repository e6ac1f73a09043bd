// What to compute next. Knows tokens and block numbers, no KV memory and no arithmetic.
//
// Every step takes one row from each sequence that is talking and fills up with a chunk of the
// prompts that are still being read. Where the cache is full, whoever came last in the order of
// priority and arrival is sent back to wait; its text so far becomes part of its prompt, and by the
// numerical contract it goes on exactly where it was.
#pragma once

#include <list>
#include <memory>
#include <vector>

#include "engine/block_manager.h"
#include "engine/sequence.h"

namespace pyllama2c {

// The rows of one sequence in a step.
struct Scheduled {
    std::shared_ptr<Sequence> sequence;
    size_t n_rows;  // tokens n_computed .. n_computed + n_rows
};

class Scheduler {
  public:
    Scheduler(int n_blocks, int max_sequences, int prefill_chunk);

    void add(std::shared_ptr<Sequence> sequence);
    // Takes the sequence out, wherever it is, and frees its blocks.
    void remove(const std::shared_ptr<Sequence>& sequence);

    // The next step's rows, their blocks allocated; empty when there is nothing to do.
    std::vector<Scheduled> schedule();
    // After the step: the rows are computed; publishes the blocks that became full.
    void computed(Sequence& sequence, size_t n_rows);

    bool idle() const { return waiting_.empty() && running_.empty(); }
    size_t n_waiting() const { return waiting_.size(); }
    size_t n_running() const { return running_.size(); }
    const BlockManager& blocks() const { return blocks_; }
    size_t n_preempted() const { return n_preempted_; }

  private:
    using Queue = std::list<std::shared_ptr<Sequence>>;

    static bool before(const Sequence& a, const Sequence& b);
    static void insert(Queue& queue, std::shared_ptr<Sequence> sequence);
    void admit();
    void take_from_cache(Sequence& sequence);
    bool grow(Sequence& sequence, size_t n_tokens);
    void preempt(Queue::iterator position);
    void free_blocks(Sequence& sequence);

    BlockManager blocks_;
    const size_t max_sequences_;
    const size_t prefill_chunk_;
    Queue waiting_, running_;  // both in order of priority, then arrival
    size_t n_preempted_ = 0;
};

}  // namespace pyllama2c
