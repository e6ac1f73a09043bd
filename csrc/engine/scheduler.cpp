#include "engine/scheduler.h"

#include <algorithm>

namespace pyllama2c {

namespace {

size_t blocks_for(size_t n_tokens) {
    return (n_tokens + BlockManager::kTokens - 1) / BlockManager::kTokens;
}

}  // namespace

Scheduler::Scheduler(int n_blocks, int max_sequences, int prefill_chunk)
    : blocks_(n_blocks), max_sequences_(max_sequences), prefill_chunk_(prefill_chunk) {}

bool Scheduler::before(const Sequence& a, const Sequence& b) {
    return a.priority != b.priority ? a.priority > b.priority : a.id < b.id;
}

void Scheduler::insert(Queue& queue, std::shared_ptr<Sequence> sequence) {
    auto position = queue.end();
    while (position != queue.begin() && before(*sequence, **std::prev(position))) --position;
    queue.insert(position, std::move(sequence));
}

void Scheduler::add(std::shared_ptr<Sequence> sequence) { insert(waiting_, std::move(sequence)); }

void Scheduler::remove(const std::shared_ptr<Sequence>& sequence) {
    waiting_.remove(sequence);
    running_.remove(sequence);
    free_blocks(*sequence);
}

void Scheduler::free_blocks(Sequence& sequence) {
    for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) {
        blocks_.release(*block);
    }
    sequence.blocks.clear();
    sequence.n_computed = sequence.n_published = 0;
}

// Starts those who wait, in order, as long as what they have to read fits the free blocks. The
// first one that does not fit keeps the later ones waiting too: nobody overtakes, nobody starves.
void Scheduler::admit() {
    while (!waiting_.empty() && running_.size() < max_sequences_) {
        Sequence& next = *waiting_.front();
        take_from_cache(next);
        const size_t missing = blocks_for(next.tokens.size()) - next.blocks.size();
        if (missing > static_cast<size_t>(blocks_.n_free())) {
            free_blocks(next);
            return;
        }
        insert(running_, std::move(waiting_.front()));
        waiting_.pop_front();
    }
}

// Starts the sequence from the longest prefix that the cache holds. At least the last token is
// always computed: its logits are wanted.
void Scheduler::take_from_cache(Sequence& sequence) {
    uint64_t parent = BlockManager::kRoot;
    while (sequence.n_computed + BlockManager::kTokens < sequence.tokens.size()) {
        const int block = blocks_.find(parent, sequence.tokens.data() + sequence.n_computed);
        if (block < 0) break;
        sequence.blocks.push_back(block);
        sequence.n_computed += BlockManager::kTokens;
        parent = blocks_.serial(block);
    }
    sequence.n_published = sequence.blocks.size();
    if (sequence.tokens.size() == sequence.n_prompt) sequence.n_cached = sequence.n_computed;
}

bool Scheduler::grow(Sequence& sequence, size_t n_tokens) {
    while (sequence.blocks.size() < blocks_for(n_tokens)) {
        const int block = blocks_.allocate();
        if (block < 0) return false;
        sequence.blocks.push_back(block);
    }
    return true;
}

void Scheduler::preempt(Queue::iterator position) {
    std::shared_ptr<Sequence> sequence = *position;
    running_.erase(position);
    free_blocks(*sequence);
    ++n_preempted_;
    insert(waiting_, std::move(sequence));
}

std::vector<Scheduled> Scheduler::schedule() {
    admit();
    std::vector<Scheduled> step;
    size_t prefill_left = prefill_chunk_;
    for (auto position = running_.begin(); position != running_.end();) {
        const std::shared_ptr<Sequence> sequence = *position;
        const size_t pending = sequence->tokens.size() - sequence->n_computed;
        size_t n_rows = 1;
        if (pending > 1) {
            n_rows = std::min(pending, prefill_left);
            if (n_rows == 0) {
                ++position;
                continue;
            }
        }
        bool preempted_itself = false;
        while (!grow(*sequence, sequence->n_computed + n_rows)) {
            // Later ones in the order have not been scheduled yet, so theirs can be taken.
            const auto last = std::prev(running_.end());
            preempted_itself = last == position;
            if (preempted_itself) ++position;
            preempt(last);
            if (preempted_itself) break;
        }
        if (preempted_itself) break;
        if (pending > 1) prefill_left -= n_rows;
        step.push_back({sequence, n_rows});
        ++position;
    }
    return step;
}

void Scheduler::computed(Sequence& sequence, size_t n_rows) {
    sequence.n_computed += n_rows;
    while ((sequence.n_published + 1) * BlockManager::kTokens <= sequence.n_computed) {
        const size_t i = sequence.n_published++;
        const uint64_t parent =
            i == 0 ? BlockManager::kRoot : blocks_.serial(sequence.blocks[i - 1]);
        sequence.blocks[i] = blocks_.publish(sequence.blocks[i], parent,
                                             sequence.tokens.data() + i * BlockManager::kTokens);
    }
}

}  // namespace pyllama2c
