// Continuous batching: requests join and leave at every step, and one forward pass per step serves
// them all.
//
// The engine has no thread of its own. Whoever waits for tokens computes: of the threads inside
// wait(), step() or compute(), one runs the pass while the others sleep until it has news.
#pragma once

#include <climits>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "backends/backend.h"
#include "engine/histogram.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace pyllama2c {

// What happened to a request since it was last looked at.
struct Progress {
    uint64_t id;
    std::vector<int32_t> tokens;  // new ones, in order
    FinishReason finish;          // kNone while it goes on; afterwards the request is forgotten
    // So far:
    size_t cached_tokens = 0;    // of the prompt, found in the cache
    double prefill_seconds = 0;  // submission to first token
    double decode_seconds = 0;   // first token to last
};

struct EngineStats {
    size_t running = 0, waiting = 0;
    size_t blocks = 0, blocks_held = 0, blocks_cached = 0;  // cached: free, but findable
    uint64_t requests = 0, finished = 0, cancelled = 0, expired = 0, refused = 0, preempted = 0;
    uint64_t prompt_tokens = 0, cached_tokens = 0;  // of requests that have begun to talk
    uint64_t generated_tokens = 0;
    uint64_t passes = 0;
    double busy_seconds = 0;  // inside passes
    Histogram first_token, inter_token;
};

class Engine {
  public:
    // max_waiting: requests beyond the max_sequences that are computed together; -1: any number.
    // max_cached: see BlockManager.
    Engine(std::unique_ptr<Backend> backend, int max_sequences, int prefill_chunk,
           int64_t max_waiting = -1, int max_cached = INT_MAX);

    // Queues a request. tokens: the prompt (n_prompt of them) and, when a text is to be continued,
    // what was generated of it before.
    // Throws ArgumentError for an empty prompt or a token outside the vocabulary, CapacityError for
    // one that is longer than the context or the whole cache, or may become so long by max_tokens
    // that the context would hold it but not the cache, OverloadedError where max_waiting
    // wait already.
    uint64_t submit(std::vector<int32_t> tokens, size_t n_prompt, SamplingParams params,
                    int priority, const RequestOptions& options = {});

    // Ends a request at once and frees what it holds; nothing more comes of it. Unknown ids (it
    // may have finished just now) are ignored.
    void cancel(uint64_t id, bool complete = false);

    using Interrupted = std::function<void()>;  // may throw

    // Computes until any of the requests has news (or, with until_finished, until all of them
    // ended) and returns the news of each that has any. Safe to call from many threads at once.
    // Where memory runs out in the middle of a pass, this, step() and compute() throw, and the
    // texts of the pass end there (kCancelled); no other text notices. `interrupted` is called,
    // without locks, before every step, between layers of a long one, and every few milliseconds
    // while another thread computes.
    std::vector<Progress> wait(const std::vector<uint64_t>& ids, bool until_finished,
                               const Interrupted& interrupted);

    // Computes until the deadline, or until there is nothing to do, as many passes as fit, and
    // fetches the news of the requests that are announced. A pass that the deadline cuts short goes
    // on in the next call; at least one layer is computed, also where the deadline is over. Without
    // a deadline (time_point::max) it is one whole pass.
    std::vector<Progress> step(Clock::time_point deadline, const Interrupted& interrupted);
    // Computes whole passes, those that begin before `until` but at least one, and none after the
    // first token of an announced request, its end, or half of the tokens that its reader may be
    // behind; returns which of the announced have news.
    std::vector<uint64_t> compute(Clock::time_point until, const Interrupted& interrupted);
    // The news of some requests, those that have any; computes nothing.
    std::vector<Progress> collect(const std::vector<uint64_t>& ids);

    // Whether compute() would find anything to do.
    bool has_work();
    // Whether a thread is computing: then a copy of the process that fork() makes is of no use.
    bool busy();
    EngineStats stats();
    // Whether no block of the cache is lost or held twice. For tests.
    bool consistent();

    size_t max_length() const { return max_length_; }

  private:
    using Lock = std::unique_lock<std::mutex>;

    void rest(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted);
    bool compute_some(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted);
    void compute_until(Lock& lock, Clock::time_point deadline, const Interrupted& interrupted);
    bool start_pass();
    void abandon_pass() noexcept;
    bool advance_pass(Clock::time_point deadline);
    void choose_tokens(Clock::time_point deadline);
    void finish_pass();
    Clock::time_point cautious(Clock::time_point deadline) const;
    void accept(Sequence& sequence, int32_t token, Clock::time_point now);
    void slide(Sequence& sequence) const;
    void retire(const std::shared_ptr<Sequence>& sequence, FinishReason reason);
    bool end_overdue();
    void announce(Sequence& sequence);
    void clear_announced() noexcept;
    std::vector<Progress> fetch(const std::vector<uint64_t>& ids, bool until_finished);

    std::unique_ptr<Backend> backend_;
    const size_t max_length_;  // of a sequence: the context, or the whole cache where that is less
    const int64_t max_waiting_;

    std::mutex mutex_;  // guards everything below but the pass itself
    std::condition_variable news_;
    bool computing_ = false;  // a thread is inside advance_pass()
    Scheduler scheduler_;
    std::unordered_map<uint64_t, std::shared_ptr<Sequence>> requests_;
    std::vector<uint64_t> announced_;
    bool pressing_ = false;  // some of it is to be told at once, see compute()
    Clock::time_point next_deadline_ = Clock::time_point::max();  // no request's is earlier
    uint64_t last_id_ = 0;
    EngineStats stats_;

    // The pass in progress: first the forward, then the choice of a token for each that wants one.
    std::vector<Scheduled> scheduled_;
    std::vector<std::vector<int32_t>> block_tables_;
    Batch batch_;
    bool forward_done_ = false;
    std::vector<Scheduled*> sampling_;
    std::vector<int32_t> sampled_;        // [max_sequences] for each of sampling_
    size_t n_sampled_ = 0;                // the first of which are done
    std::vector<Candidates> candidates_;  // per thread
    double forward_seconds_ = 0, pass_seconds_ = 0;
    double layer_seconds_ = 0;  // of a pass before, with layer_rows_ rows
    size_t layer_rows_ = 1;
};

}  // namespace pyllama2c
