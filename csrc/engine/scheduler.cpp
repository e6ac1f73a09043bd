#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

namespace pyllama2c {

namespace {

constexpr size_t kTokens = BlockManager::kTokens;

size_t blocks_for(size_t n_tokens) { return (n_tokens + kTokens - 1) / kTokens; }

// Whether its reader is so far behind that computing more would be for nobody.
bool is_behind(const Sequence& s) {
    const size_t most = s.options.max_unread;
    return most > 0 && s.n_unread() >= (s.set_aside ? (most + 1) / 2 : most);
}

}  // namespace

Scheduler::Scheduler(int n_blocks, int max_sequences, int prefill_chunk, int max_cached)
    : blocks_(n_blocks, max_cached), max_sequences_(max_sequences), prefill_chunk_(prefill_chunk) {}

bool Scheduler::before(const Sequence& a, const Sequence& b) {
    return std::make_tuple(b.priority, a.options.deadline, a.id) <
           std::make_tuple(a.priority, b.options.deadline, b.id);
}

// Takes no memory, so that nobody is lost on the way.
void Scheduler::move(Queue& from, Queue::iterator item, Queue& to) {
    auto position = to.end();
    while (position != to.begin() && before(**item, **std::prev(position))) --position;
    to.splice(position, from, item);
}

void Scheduler::add(std::shared_ptr<Sequence> sequence) {
    Queue one{std::move(sequence)};
    move(one, one.begin(), waiting_);
}

void Scheduler::remove(const std::shared_ptr<Sequence>& sequence) {
    waiting_.remove(sequence);
    running_.remove(sequence);
    free_blocks(*sequence);
    if (!has_waiting()) full_ = false;
}

void Scheduler::free_blocks(Sequence& sequence) {
    for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) {
        blocks_.release(*block);
    }
    sequence.blocks.clear();
    sequence.n_computed = sequence.n_published = 0;
}

bool Scheduler::has_work() const { return !running_.empty() || has_waiting(); }

bool Scheduler::has_waiting() const {
    return std::any_of(waiting_.begin(), waiting_.end(),
                       [](const auto& s) { return !is_behind(*s); });
}

void Scheduler::send_back(Queue::iterator position) {
    free_blocks(**position);
    move(running_, position, waiting_);
}

void Scheduler::set_slow_readers_aside() {
    for (auto position = running_.begin(); position != running_.end();) {
        const auto here = position++;
        if (!is_behind(**here)) continue;
        (*here)->set_aside = true;
        send_back(here);
    }
}

// Starts those who wait, in order, as long as what they have to read fits the free blocks. The
// first one that does not fit keeps the later ones waiting too: nobody overtakes, nobody starves.
void Scheduler::admit() {
    full_ = false;
    size_t promised = n_promised();
    for (auto position = waiting_.begin(); position != waiting_.end();) {
        const auto here = position++;
        Sequence& next = **here;
        if (is_behind(next)) continue;
        take_from_cache(next);
        const size_t missing = blocks_for(next.tokens.size()) - next.blocks.size();
        if (!make_room_for(next, missing, promised)) {
            free_blocks(next);
            full_ = true;
            return;
        }
        promised += missing;
        next.set_aside = false;
        move(waiting_, here, running_);
    }
}

// Blocks that running sequences still need for what they have to read.
size_t Scheduler::n_promised() const {
    size_t blocks = 0;
    for (const auto& s : running_) {
        const size_t needed = blocks_for(s->tokens.size());
        if (needed > s->blocks.size()) blocks += needed - s->blocks.size();
    }
    return blocks;
}

// Sends back those of lower priority where that is what it takes. They wait behind the one that
// is being admitted, so `waiting_` only changes behind it.
bool Scheduler::make_room_for(const Sequence& sequence, size_t n_blocks, size_t& promised) {
    while (running_.size() >= max_sequences_ ||
           n_blocks + promised > static_cast<size_t>(blocks_.n_free())) {
        if (running_.empty() || running_.back()->priority >= sequence.priority) return false;
        send_back(std::prev(running_.end()));
        promised = n_promised();
        ++n_preempted_;
    }
    return true;
}

// Adds the blocks that others have computed already. At least the last token is always computed
// anew: its logits are wanted.
void Scheduler::take_from_cache(Sequence& s) {
    if (s.n_computed + kTokens >= s.tokens.size()) return;
    // Not in the middle of a block, nor behind blocks that a pass which failed was to compute.
    if (s.n_computed != s.blocks.size() * kTokens) return;
    s.blocks.reserve(blocks_for(s.tokens.size()));
    uint64_t parent = s.blocks.empty() ? BlockManager::kRoot : blocks_.serial(s.blocks.back());
    if (!s.talking && s.n_computed == 0) s.n_cached = 0;
    while (s.n_computed + kTokens < s.tokens.size()) {
        const int block = blocks_.find(parent, s.tokens.data() + s.n_computed);
        if (block < 0) break;
        s.blocks.push_back(block);
        s.n_computed += kTokens;
        if (!s.talking) s.n_cached += kTokens;
        parent = blocks_.serial(block);
    }
    s.n_published = s.blocks.size();
}

bool Scheduler::grow(Sequence& sequence, size_t n_tokens) {
    sequence.blocks.reserve(blocks_for(n_tokens));
    while (sequence.blocks.size() < blocks_for(n_tokens)) {
        const int block = blocks_.allocate();
        if (block < 0) return false;
        sequence.blocks.push_back(block);
    }
    return true;
}

std::vector<Scheduled> Scheduler::schedule() {
    set_slow_readers_aside();
    admit();
    std::vector<Scheduled> step;
    size_t prefill_left = prefill_chunk_;
    for (auto position = running_.begin(); position != running_.end();) {
        const auto here = position++;
        const std::shared_ptr<Sequence> sequence = *here;
        size_t pending = sequence->tokens.size() - sequence->n_computed;
        size_t n_rows = 1;
        if (pending > 1) {
            if (prefill_left == 0) continue;
            take_from_cache(*sequence);  // perhaps somebody with the same prompt was quicker
            pending = sequence->tokens.size() - sequence->n_computed;
            n_rows = std::min(pending, prefill_left);
            // Whoever is interrupted stops at the end of a block where possible, so as to look for
            // the next one in the cache.
            const size_t odd = (sequence->n_computed + n_rows) % kTokens;
            if (n_rows < pending && n_rows > odd) n_rows -= odd;
        }
        bool sent_back_itself = false;
        while (!sent_back_itself && !grow(*sequence, sequence->n_computed + n_rows)) {
            // Later ones in the order have not been scheduled yet, so theirs can be taken.
            const auto last = std::prev(running_.end());
            sent_back_itself = last == here;
            if (last == position) position = running_.end();
            send_back(last);
            ++n_preempted_;
        }
        if (sent_back_itself) break;
        if (pending > 1) prefill_left -= n_rows;
        step.push_back({sequence, sequence->n_computed, n_rows, n_rows == pending});
    }
    return step;
}

void Scheduler::computed(Sequence& sequence, size_t n_rows) {
    sequence.n_computed += n_rows;
    while ((sequence.n_published + 1) * kTokens <= sequence.n_computed) {
        const size_t i = sequence.n_published++;
        const uint64_t parent =
            i == 0 ? BlockManager::kRoot : blocks_.serial(sequence.blocks[i - 1]);
        sequence.blocks[i] =
            blocks_.publish(sequence.blocks[i], parent, sequence.tokens.data() + i * kTokens);
    }
}

bool Scheduler::consistent() const {
    std::vector<int> holders(blocks_.n_blocks());
    for (const Queue* queue : {&waiting_, &running_}) {
        for (const auto& sequence : *queue) {
            for (const int32_t block : sequence->blocks) ++holders[block];
        }
    }
    return blocks_.consistent(holders);
}

}  // namespace pyllama2c
