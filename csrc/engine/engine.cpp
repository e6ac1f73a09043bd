#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"

namespace pyllama2c {

namespace {

constexpr Clock::time_point kNever = Clock::time_point::max();
// A pass over a long prompt may take seconds; Ctrl-C must not wait for its end.
constexpr std::chrono::milliseconds kBetweenInterrupts(50);

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Engine::Engine(std::unique_ptr<Backend> backend, int max_sequences, int prefill_chunk,
               int64_t max_waiting, int max_cached)
    : backend_(std::move(backend)),
      max_length_(
          std::min<size_t>(backend_->config().max_seq_len,
                           static_cast<size_t>(backend_->n_blocks()) * BlockManager::kTokens)),
      max_waiting_(max_waiting),
      scheduler_(backend_->n_blocks(), max_sequences, prefill_chunk, max_cached),
      sampled_(max_sequences),
      candidates_(backend_->n_threads()) {
    for (Candidates& candidates : candidates_) candidates.reserve(backend_->config().vocab_size);
}

uint64_t Engine::submit(std::vector<int32_t> tokens, size_t n_prompt, SamplingParams params,
                        int priority, const RequestOptions& options) {
    if (n_prompt == 0 || n_prompt > tokens.size()) {
        throw ArgumentError("prompt has no tokens; start with the BOS token");
    }
    if (tokens.size() > max_length_ && options.n_keep < 0) {
        throw CapacityError(text("prompt has ", tokens.size(), " tokens, at most ", max_length_,
                                 " fit the context"));
    }
    // What the context holds but the cache does not: where a text ends must not depend on memory.
    const size_t context = backend_->config().max_seq_len;
    if (params.max_tokens >= 0 && options.n_keep < 0 && max_length_ < context &&
        std::min(n_prompt + params.max_tokens, context + 1) > max_length_ + 1) {
        throw CapacityError(text("prompt has ", n_prompt, " tokens and max_tokens is ",
                                 params.max_tokens, ", kv_memory holds ", max_length_,
                                 " in all: give more of it, or ask for fewer"));
    }
    if (options.n_keep >= 0 && static_cast<size_t>(options.n_keep) + 2 > max_length_) {
        throw CapacityError(text("prefix has ", options.n_keep, " tokens, at most ",
                                 max_length_ - 2, " leave room in the context for a text"));
    }
    const int vocab_size = backend_->config().vocab_size;
    for (const int32_t token : tokens) {
        if (token < 0 || token >= vocab_size) {
            throw ArgumentError(
                text("prompt holds token ", token, ", expected 0 to ", vocab_size - 1));
        }
    }
    const Lock lock(mutex_);
    const size_t queued = scheduler_.n_waiting() + scheduler_.n_running();
    if (max_waiting_ >= 0 && queued >= scheduler_.n_places() + static_cast<size_t>(max_waiting_)) {
        ++stats_.refused;
        throw OverloadedError(text(scheduler_.n_running(), " requests are being computed and ",
                                   scheduler_.n_waiting(), " wait; max_waiting is ", max_waiting_));
    }
    const auto sequence = std::make_shared<Sequence>(++last_id_, std::move(tokens), n_prompt,
                                                     std::move(params), priority, options);
    sequence->submitted = sequence->first_token = sequence->last_token = Clock::now();
    slide(*sequence);
    sequence->n_start = sequence->tokens.size();
    requests_[sequence->id] = sequence;
    const int32_t most = sequence->sampler.params().max_tokens;
    const bool ended = most >= 0 && sequence->text.size() >= static_cast<size_t>(most);
    try {
        // From now on announcing it takes no memory: that happens where nothing may fail.
        if (options.announce) announced_.reserve(announced_.size() + requests_.size());
        if (ended) {
            sequence->finish = FinishReason::kLength;
            announce(*sequence);
        } else {
            scheduler_.add(sequence);
        }
    } catch (...) {
        requests_.erase(sequence->id);
        throw;
    }
    ++stats_.requests;
    stats_.finished += ended;
    if (!ended) next_deadline_ = std::min(next_deadline_, options.deadline);
    return sequence->id;
}

void Engine::cancel(uint64_t id, bool complete) {
    const Lock lock(mutex_);
    const auto found = requests_.find(id);
    if (found == requests_.end()) return;
    if (found->second->finish == FinishReason::kNone) {
        retire(found->second, FinishReason::kCancelled);
        ++(complete ? stats_.finished : stats_.cancelled);
    }
    requests_.erase(id);
}

void Engine::retire(const std::shared_ptr<Sequence>& sequence, FinishReason reason) {
    sequence->finish = reason;
    scheduler_.remove(sequence);
}

void Engine::announce(Sequence& sequence) {
    if (!sequence.options.announce) return;
    const size_t half = (size_t{1} + sequence.options.max_unread) / 2;
    pressing_ |= sequence.finish != FinishReason::kNone || sequence.n_unread() == half;
    if (sequence.announced) return;
    announced_.push_back(sequence.id);
    sequence.announced = true;
}

void Engine::clear_announced() noexcept {
    for (const uint64_t id : announced_) {
        if (const auto found = requests_.find(id); found != requests_.end()) {
            found->second->announced = false;
        }
    }
    announced_.clear();  // what submit() has reserved stays
    pressing_ = false;
}

std::vector<Progress> Engine::fetch(const std::vector<uint64_t>& ids, bool until_finished) {
    std::vector<Progress> progress;
    if (until_finished) {
        for (const uint64_t id : ids) {
            const auto found = requests_.find(id);
            if (found != requests_.end() && found->second->finish == FinishReason::kNone) return {};
        }
    }
    for (const uint64_t id : ids) {
        const auto found = requests_.find(id);
        if (found == requests_.end()) continue;
        const Sequence& s = *found->second;
        if (s.n_unread() == 0 && s.finish == FinishReason::kNone) continue;
        Progress news{id, {s.text.begin() + s.n_delivered, s.text.end()}, s.finish};
        news.cached_tokens = s.n_cached;
        news.prefill_seconds = seconds(s.submitted, s.first_token);
        news.decode_seconds = seconds(s.first_token, s.last_token);
        progress.push_back(std::move(news));
    }
    // Only now, when no memory is wanted any more, is it counted as told.
    for (const uint64_t id : ids) {
        const auto found = requests_.find(id);
        if (found == requests_.end()) continue;
        Sequence& s = *found->second;
        s.n_delivered = s.text.size();
        if (s.finish != FinishReason::kNone) requests_.erase(found);
    }
    return progress;
}

std::vector<Progress> Engine::collect(const std::vector<uint64_t>& ids) {
    const Lock lock(mutex_);
    return fetch(ids, false);
}

std::vector<Progress> Engine::wait(const std::vector<uint64_t>& ids, bool until_finished,
                                   const Interrupted& interrupted) {
    Lock lock(mutex_);
    const auto known = [&](uint64_t id) { return requests_.count(id) != 0; };
    while (true) {
        std::vector<Progress> progress = fetch(ids, until_finished);
        if (!progress.empty() || std::none_of(ids.begin(), ids.end(), known)) return progress;
        // There may be nothing to do: those waited for are set aside until somebody reads.
        if (!compute_some(lock, kNever, interrupted)) rest(lock, kNever, interrupted);
    }
}

void Engine::rest(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted) {
    news_.wait_until(lock, std::min(deadline, Clock::now() + std::chrono::milliseconds(20)));
    lock.unlock();
    interrupted();
    lock.lock();
}

std::vector<uint64_t> Engine::compute(Clock::time_point until, const Interrupted& interrupted) {
    Lock lock(mutex_);
    while (compute_some(lock, kNever, interrupted) &&
           (!scheduled_.empty() || (!pressing_ && Clock::now() < until))) {
    }
    std::vector<uint64_t> ids = announced_;
    clear_announced();
    return ids;
}

std::vector<Progress> Engine::step(Clock::time_point deadline, const Interrupted& interrupted) {
    Lock lock(mutex_);
    compute_until(lock, deadline, interrupted);
    std::vector<Progress> progress = fetch(announced_, false);
    clear_announced();
    return progress;
}

void Engine::compute_until(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted) {
    end_overdue();
    if (deadline == kNever) {
        const uint64_t passes = stats_.passes;
        while (stats_.passes == passes && compute_some(lock, kNever, interrupted)) {
        }
        return;
    }
    // At least once: a loop that is always late must not leave its texts standing still.
    Clock::time_point last_start;
    do {
        if (!compute_some(lock, deadline, interrupted)) break;
        last_start = computing_ ? deadline : cautious(deadline);
    } while (Clock::now() < last_start);
    end_overdue();
}

// When to begin the last layer, so that it will probably end in time.
Clock::time_point Engine::cautious(Clock::time_point deadline) const {
    if (deadline == kNever || forward_done_) return deadline;
    const double rows = static_cast<double>(std::max(batch_.rows.size(), layer_rows_));
    const std::chrono::duration<double> layer(layer_seconds_ * rows / layer_rows_);
    return deadline - std::chrono::duration_cast<Clock::duration>(layer);
}

// One stretch of computing: to the end of a pass, to the deadline, or to the next request's
// deadline. Where another thread computes, waits for a while instead. False: nothing to do.
bool Engine::compute_some(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted) {
    if (end_overdue()) return true;
    if (computing_) {
        rest(lock, deadline, interrupted);
        return true;
    }
    lock.unlock();
    interrupted();  // a signal's handler may compute, too
    lock.lock();
    if (computing_) return true;
    if (scheduled_.empty() && !start_pass()) return false;
    computing_ = true;
    const Clock::time_point until =
        std::min({deadline, next_deadline_, Clock::now() + kBetweenInterrupts});
    lock.unlock();
    try {
        const bool done = advance_pass(until);
        lock.lock();
        if (done) finish_pass();
    } catch (...) {
        if (!lock.owns_lock()) lock.lock();
        abandon_pass();
        computing_ = false;
        news_.notify_all();
        throw;
    }
    computing_ = false;
    news_.notify_all();
    return true;
}

bool Engine::start_pass() {
    // Until all of it stands there is no pass: memory may run out on the way.
    std::vector<Scheduled> scheduled = scheduler_.schedule();
    batch_.clear();
    sampling_.clear();
    if (scheduled.empty()) return false;
    block_tables_.resize(scheduled.size());
    for (size_t i = 0; i < scheduled.size(); ++i) {
        Scheduled& item = scheduled[i];
        block_tables_[i] = item.sequence->blocks;
        batch_.block_tables.push_back(block_tables_[i].data());
        for (size_t position = item.first; position < item.first + item.n_rows; ++position) {
            batch_.rows.push_back({item.sequence->tokens[position], static_cast<int32_t>(position),
                                   static_cast<int32_t>(i)});
        }
        if (!item.samples) continue;
        batch_.logit_rows.push_back(static_cast<int32_t>(batch_.rows.size()) - 1);
        sampling_.push_back(&item);
    }
    backend_->begin(batch_);
    scheduled_ = std::move(scheduled);  // sampling_ points into it still
    forward_done_ = false;
    forward_seconds_ = pass_seconds_ = 0;
    n_sampled_ = 0;
    return true;
}

// Ends the texts of a pass that cannot go on: some of them may have their token, some not.
void Engine::abandon_pass() noexcept {
    for (const Scheduled& item : scheduled_) {
        Sequence& s = *item.sequence;
        scheduler_.remove(item.sequence);
        if (s.finish == FinishReason::kNone) {
            s.finish = FinishReason::kCancelled;
            ++stats_.cancelled;
            announce(s);  // those that ended before have been
        }
    }
    scheduled_.clear();
}

// Works on the pass until it is done (true) or the deadline is over (false), at least for a layer
// or a token. Runs without the lock.
bool Engine::advance_pass(Clock::time_point deadline) {
    const Clock::time_point start = Clock::now();
    if (!forward_done_) {
        forward_done_ = backend_->advance(cautious(deadline));
        forward_seconds_ += seconds(start, Clock::now());
    }
    if (forward_done_) choose_tokens(deadline);
    pass_seconds_ += seconds(start, Clock::now());
    return forward_done_ && n_sampled_ == sampling_.size();
}

// Chooses tokens until all are chosen or the deadline is over, at least one. The threads take them
// in order, so that those chosen are the first ones whenever it is over.
void Engine::choose_tokens(Clock::time_point deadline) {
    const int vocab_size = backend_->config().vocab_size;
    // A second thread costs a few microseconds; it must be worth more.
    constexpr size_t kLogitsPerThread = 16384;
    const size_t left = sampling_.size() - n_sampled_;
    const size_t useful = std::min(left, 1 + left * vocab_size / kLogitsPerThread);
    std::atomic<size_t> next{n_sampled_};
    parallel(static_cast<int>(std::min(candidates_.size(), useful)), [&](Team& team) {
        for (size_t i = next++; i < sampling_.size(); i = next++) {
            sampled_[i] = sampling_[i]->sequence->sampler.sample(
                backend_->logits(static_cast<int>(i)), vocab_size, *backend_,
                candidates_[team.rank()]);
            if (deadline != kNever && Clock::now() >= deadline) break;
        }
    });
    n_sampled_ = std::min(next.load(), sampling_.size());
}

void Engine::finish_pass() {
    const Clock::time_point now = Clock::now();
    layer_rows_ = batch_.rows.size();
    // Only the rows with logits go through all of the last layer, and through the classifier.
    const double n_rows = static_cast<double>(layer_rows_);
    const double kept = static_cast<double>(batch_.logit_rows.size()) / n_rows;
    const double n_layers = backend_->config().n_layers - 1 + 2 * kept;
    layer_seconds_ = forward_seconds_ / std::max(n_layers, 1.0);
    stats_.busy_seconds += pass_seconds_;
    ++stats_.passes;
    size_t next_sampled = 0;
    for (const Scheduled& item : scheduled_) {
        Sequence& s = *item.sequence;
        const int32_t token = item.samples ? sampled_[next_sampled++] : -1;
        if (s.finish != FinishReason::kNone) continue;  // cancelled meanwhile
        scheduler_.computed(s, item.n_rows);
        if (!item.samples) continue;
        accept(s, token, now);
        announce(s);
        if (s.finish != FinishReason::kNone) scheduler_.remove(item.sequence);
    }
    scheduled_.clear();
}

// Appends the token, unless it ends the text.
void Engine::accept(Sequence& s, int32_t token, Clock::time_point now) {
    const SamplingParams& params = s.sampler.params();
    ++stats_.generated_tokens;
    if (!s.talking) {
        s.talking = true;
        pressing_ |= s.options.announce;
        s.first_token = now;
        stats_.first_token.add(seconds(s.submitted, now));
        stats_.prompt_tokens += s.n_start;
        stats_.cached_tokens += s.n_cached;
    } else {
        stats_.inter_token.add(seconds(s.last_token, now));
    }
    s.last_token = now;
    if (std::binary_search(params.stop_token_ids.begin(), params.stop_token_ids.end(), token)) {
        s.finish = FinishReason::kStop;
        ++stats_.finished;
        return;
    }
    s.tokens.push_back(token);
    s.text.push_back(token);
    s.sampler.accept(token);
    const bool all =
        params.max_tokens >= 0 && s.text.size() >= static_cast<size_t>(params.max_tokens);
    const bool full = s.tokens.size() > max_length_;
    if (all || (full && s.options.n_keep < 0)) {
        s.finish = FinishReason::kLength;
        ++stats_.finished;
    } else if (full) {
        slide(s);
        scheduler_.restart(s);
    }
}

// Drops tokens until the context holds the rest. What is kept depends on the number of tokens
// alone, so a text that is continued later slides at the same places.
void Engine::slide(Sequence& s) const {
    if (s.options.n_keep < 0 || s.tokens.size() <= max_length_) return;
    const size_t n_keep = s.options.n_keep;
    const size_t half = (max_length_ - n_keep) / 2, excess = s.tokens.size() - max_length_;
    const size_t n_dropped = (excess + half - 1) / half * half;  // one half after the other
    s.tokens.erase(s.tokens.begin() + n_keep, s.tokens.begin() + n_keep + n_dropped);
}

// Whether any request was overdue.
bool Engine::end_overdue() {
    if (next_deadline_ == kNever) return false;
    const Clock::time_point now = Clock::now();
    if (now < next_deadline_) return false;
    const uint64_t expired = stats_.expired;
    next_deadline_ = kNever;
    for (const auto& [id, sequence] : requests_) {
        if (sequence->finish != FinishReason::kNone) continue;
        if (sequence->options.deadline > now) {
            next_deadline_ = std::min(next_deadline_, sequence->options.deadline);
            continue;
        }
        retire(sequence, FinishReason::kDeadline);
        ++stats_.expired;
        announce(*sequence);
    }
    return stats_.expired > expired;
}

bool Engine::has_work() {
    const Lock lock(mutex_);
    return !scheduled_.empty() || !announced_.empty() || scheduler_.has_work();
}

bool Engine::busy() {
    const Lock lock(mutex_, std::try_to_lock);
    return !lock || computing_;
}

EngineStats Engine::stats() {
    const Lock lock(mutex_);
    EngineStats stats = stats_;
    stats.running = scheduler_.n_running();
    stats.waiting = scheduler_.n_waiting();
    stats.preempted = scheduler_.n_preempted();
    stats.blocks = scheduler_.blocks().n_blocks();
    stats.blocks_held = stats.blocks - scheduler_.blocks().n_free();
    stats.blocks_cached = scheduler_.blocks().n_cached();
    return stats;
}

bool Engine::consistent() {
    const Lock lock(mutex_);
    return scheduler_.consistent();
}

}  // namespace pyllama2c
