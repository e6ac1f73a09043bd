#include "engine/engine.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace pyllama2c {

namespace {

double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Engine::Engine(std::unique_ptr<Backend> backend, int max_sequences, int prefill_chunk)
    : backend_(std::move(backend)),
      max_length_(
          std::min<size_t>(backend_->config().max_seq_len,
                           static_cast<size_t>(backend_->n_blocks()) * BlockManager::kTokens)),
      scheduler_(backend_->n_blocks(), max_sequences, prefill_chunk) {}

uint64_t Engine::submit(std::vector<int32_t> tokens, size_t n_prompt, SamplingParams params,
                        int priority) {
    if (tokens.empty()) throw ArgumentError("prompt has no tokens; start with the BOS token");
    if (tokens.size() > max_length_) {
        throw CapacityError(text("prompt has ", tokens.size(), " tokens, at most ", max_length_,
                                 " fit the context"));
    }
    const int vocab_size = backend_->config().vocab_size;
    for (const int32_t token : tokens) {
        if (token < 0 || token >= vocab_size) {
            throw ArgumentError(
                text("prompt holds token ", token, ", expected 0 to ", vocab_size - 1));
        }
    }
    const Lock lock(mutex_);
    const auto sequence = std::make_shared<Sequence>(++last_id_, std::move(tokens), n_prompt,
                                                     std::move(params), priority);
    sequence->n_delivered = sequence->tokens.size();
    sequence->submitted = sequence->first_token = sequence->last_token = Clock::now();
    requests_[sequence->id] = sequence;
    const int32_t most = sequence->sampler.params().max_tokens;
    if (most >= 0 && sequence->tokens.size() - n_prompt >= static_cast<size_t>(most)) {
        sequence->finish = FinishReason::kLength;
    } else {
        scheduler_.add(sequence);
    }
    return sequence->id;
}

void Engine::cancel(uint64_t id) {
    const Lock lock(mutex_);
    const auto found = requests_.find(id);
    if (found == requests_.end()) return;
    if (found->second->finish == FinishReason::kNone) {
        retire(found->second, FinishReason::kCancelled);
    }
    requests_.erase(id);
}

void Engine::retire(const std::shared_ptr<Sequence>& sequence, FinishReason reason) {
    sequence->finish = reason;
    scheduler_.remove(sequence);
}

std::vector<Progress> Engine::collect(const std::vector<uint64_t>& ids, bool until_finished) {
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
        Sequence& s = *found->second;
        if (s.n_delivered == s.tokens.size() && s.finish == FinishReason::kNone) continue;
        Progress news{id, {s.tokens.begin() + s.n_delivered, s.tokens.end()}, s.finish};
        s.n_delivered = s.tokens.size();
        news.rng_state = s.sampler.rng_state();
        news.cached_tokens = s.n_cached;
        news.prefill_seconds = seconds(s.submitted, s.first_token);
        news.decode_seconds = seconds(s.first_token, s.last_token);
        if (s.finish != FinishReason::kNone) requests_.erase(found);
        progress.push_back(std::move(news));
    }
    return progress;
}

std::vector<Progress> Engine::wait(const std::vector<uint64_t>& ids, bool until_finished,
                                   const std::function<void()>& interrupted) {
    Lock lock(mutex_);
    const auto known = [&](uint64_t id) { return requests_.count(id) != 0; };
    while (true) {
        std::vector<Progress> progress = collect(ids, until_finished);
        if (!progress.empty() || std::none_of(ids.begin(), ids.end(), known)) return progress;
        if (computing_) {
            news_.wait_for(lock, std::chrono::milliseconds(20));
            lock.unlock();
            interrupted();
            lock.lock();
            continue;
        }
        computing_ = true;
        if (scheduled_.empty()) start_pass();
        lock.unlock();
        bool done = false;
        try {
            interrupted();
            done = backend_->advance(Clock::time_point::max());
        } catch (...) {
            lock.lock();
            computing_ = false;
            news_.notify_all();
            throw;
        }
        lock.lock();
        if (done) finish_pass();
        computing_ = false;
        news_.notify_all();
    }
}

void Engine::start_pass() {
    scheduled_ = scheduler_.schedule();
    batch_.clear();
    block_tables_.resize(scheduled_.size());
    for (size_t i = 0; i < scheduled_.size(); ++i) {
        const Sequence& s = *scheduled_[i].sequence;
        block_tables_[i] = s.blocks;
        batch_.block_tables.push_back(block_tables_[i].data());
        const size_t end = s.n_computed + scheduled_[i].n_rows;
        for (size_t position = s.n_computed; position < end; ++position) {
            batch_.rows.push_back(
                {s.tokens[position], static_cast<int32_t>(position), static_cast<int32_t>(i)});
        }
        if (end == s.tokens.size()) {
            batch_.logit_rows.push_back(static_cast<int32_t>(batch_.rows.size()) - 1);
        }
    }
    backend_->begin(batch_);
}

void Engine::finish_pass() {
    const int vocab_size = backend_->config().vocab_size;
    const Clock::time_point now = Clock::now();
    size_t end = 0;     // of this sequence's rows
    size_t logits = 0;  // of logit_rows, how many were seen
    for (const Scheduled& item : scheduled_) {
        Sequence& s = *item.sequence;
        end += item.n_rows;
        // Asked of the batch, not of the sequence: that may have been cancelled since.
        const bool wants_token = logits < batch_.logit_rows.size() &&
                                 static_cast<size_t>(batch_.logit_rows[logits]) == end - 1;
        float* const row = wants_token ? backend_->logits(static_cast<int>(logits++)) : nullptr;
        if (s.finish != FinishReason::kNone) continue;  // cancelled meanwhile
        scheduler_.computed(s, item.n_rows);
        if (!wants_token) continue;
        const int32_t token = s.sampler.sample(row, vocab_size, *backend_);
        accept(s, token, now);
        if (s.finish != FinishReason::kNone) scheduler_.remove(item.sequence);
    }
    scheduled_.clear();
}

// Appends the token, unless it ends the text.
void Engine::accept(Sequence& s, int32_t token, Clock::time_point now) {
    const SamplingParams& params = s.sampler.params();
    if (s.tokens.size() == s.n_prompt) s.first_token = now;
    s.last_token = now;
    if (std::binary_search(params.stop_token_ids.begin(), params.stop_token_ids.end(), token)) {
        s.finish = FinishReason::kStop;
        return;
    }
    s.tokens.push_back(token);
    s.sampler.accept(token);
    const bool all = params.max_tokens >= 0 &&
                     s.tokens.size() - s.n_prompt >= static_cast<size_t>(params.max_tokens);
    if (all || s.tokens.size() > max_length_) s.finish = FinishReason::kLength;
}

}  // namespace pyllama2c
