// What to compute next. Knows tokens and block numbers, no KV memory and no arithmetic.
//
// Every step takes one row from each sequence that is talking and fills up with a chunk of the
// prompts that are still being read. The order is that of priority, then deadline, then arrival.
// Where the cache is full, whoever is last in this order is sent back to wait; its text so far
// becomes part of its prompt, and by the numerical contract it goes on exactly where it was.
#pragma once

#include <algorithm>
#include <list>
#include <memory>
#include <vector>

#include "engine/block_manager.h"
#include "engine/sequence.h"

namespace pyllama2c {

// The rows of one sequence in a step.
struct Scheduled {
    std::shared_ptr<Sequence> sequence;
    size_t first;  // tokens first .. first + n_rows - 1
    size_t n_rows;
    bool samples;  // its last row is the last token, so the next one can be chosen
};

class Scheduler {
  public:
    Scheduler(int n_blocks, int max_sequences, int prefill_chunk, int max_cached);

    void add(std::shared_ptr<Sequence> sequence);
    // Takes the sequence out, wherever it is, and frees its blocks.
    void remove(const std::shared_ptr<Sequence>& sequence);
    // Frees its blocks and has it read again: its tokens have changed.
    void restart(Sequence& sequence) { free_blocks(sequence); }

    // The next step's rows, their blocks allocated; empty when there is nothing to do.
    std::vector<Scheduled> schedule();
    // After the step: the rows are computed; publishes the blocks that became full.
    void computed(Sequence& sequence, size_t n_rows);

    // Whether schedule() would find anything: there may be requests, but all of them set aside.
    bool has_work() const;
    size_t n_waiting() const { return waiting_.size(); }
    size_t n_running() const { return running_.size(); }
    size_t n_preempted() const { return n_preempted_; }
    // How many can be computed at once, as far as is known: fewer where the cache is full.
    size_t n_places() const {
        return full_ ? std::max<size_t>(running_.size(), 1) : max_sequences_;
    }
    const BlockManager& blocks() const { return blocks_; }
    // Whether every block is accounted for, held exactly as often as sequences hold it.
    bool consistent() const;

  private:
    using Queue = std::list<std::shared_ptr<Sequence>>;

    static bool before(const Sequence& a, const Sequence& b);
    static void move(Queue& from, Queue::iterator item, Queue& to);
    bool has_waiting() const;  // for a place or for memory, not for a reader
    void set_slow_readers_aside();
    void admit();
    size_t n_promised() const;
    // promised: n_promised(), kept up to date.
    bool make_room_for(const Sequence& sequence, size_t n_blocks, size_t& promised);
    void take_from_cache(Sequence& sequence);
    bool grow(Sequence& sequence, size_t n_tokens);
    void send_back(Queue::iterator position);
    void free_blocks(Sequence& sequence);

    BlockManager blocks_;
    const size_t max_sequences_;
    const size_t prefill_chunk_;
    Queue waiting_, running_;  // both in the order of before()
    size_t n_preempted_ = 0;
    bool full_ = false;  // somebody waits for whom there was no room
};

}  // namespace pyllama2c
