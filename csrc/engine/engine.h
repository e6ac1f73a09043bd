// Continuous batching: requests join and leave at every step, and one forward pass per step serves
// them all.
//
// The engine has no thread of its own. Whoever waits for tokens computes: of the threads inside
// wait(), one runs a step while the others sleep until it has news for them.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "backends/backend.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace pyllama2c {

// What happened to a request since it was last looked at.
struct Progress {
    uint64_t id;
    std::vector<int32_t> tokens;  // new ones, in order
    FinishReason finish;          // kNone while it goes on; afterwards the request is forgotten
    // So far:
    uint64_t rng_state = 0;
    size_t cached_tokens = 0;    // of the prompt, found in the cache
    double prefill_seconds = 0;  // submission to first token
    double decode_seconds = 0;   // first token to last
};

class Engine {
  public:
    Engine(std::unique_ptr<Backend> backend, int max_sequences, int prefill_chunk);

    // Queues a request. tokens: the prompt (n_prompt of them) and, when a text is to be continued,
    // what was generated of it before.
    // Throws ArgumentError for an empty prompt or a token outside the vocabulary, CapacityError for
    // one that is longer than the context or the whole cache.
    uint64_t submit(std::vector<int32_t> tokens, size_t n_prompt, SamplingParams params,
                    int priority);

    // Ends a request at once and frees what it holds; nothing more comes of it. Unknown ids (it
    // may have finished just now) are ignored.
    void cancel(uint64_t id);

    // Computes until any of the requests has news (or, with until_finished, until all of them
    // ended) and returns the news of each that has any. Safe to call from many threads at once.
    // `interrupted` is called, without locks, before every step and every few milliseconds while
    // another thread computes; it may throw.
    std::vector<Progress> wait(const std::vector<uint64_t>& ids, bool until_finished,
                               const std::function<void()>& interrupted);

    const Backend& backend() const { return *backend_; }

  private:
    using Lock = std::unique_lock<std::mutex>;

    void start_pass();
    void finish_pass();
    void accept(Sequence& sequence, int32_t token, Clock::time_point now);
    void retire(const std::shared_ptr<Sequence>& sequence, FinishReason reason);
    std::vector<Progress> collect(const std::vector<uint64_t>& ids, bool until_finished);

    std::unique_ptr<Backend> backend_;
    const size_t max_length_;  // of a sequence: the context, or the whole cache where that is less

    std::mutex mutex_;  // guards everything below but the pass itself
    std::condition_variable news_;
    bool computing_ = false;  // a thread is inside backend_->advance()
    Scheduler scheduler_;
    std::unordered_map<uint64_t, std::shared_ptr<Sequence>> requests_;
    uint64_t last_id_ = 0;

    // The pass in progress.
    std::vector<Scheduled> scheduled_;
    std::vector<std::vector<int32_t>> block_tables_;
    Batch batch_;
};

}  // namespace pyllama2c
