#include "base/parallel.h"

#include <sched.h>

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

// ThreadSanitizer does not see how libgomp, which is not compiled for it, starts and joins its
// threads. This says the same in its own words; elsewhere it is nothing.
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_release(void*);
extern "C" void __tsan_acquire(void*);
#define HAPPENS_BEFORE(address) __tsan_release(address)
#define HAPPENS_AFTER(address) __tsan_acquire(address)
#define HIDDEN_FROM_TSAN __attribute__((no_sanitize("thread")))
#else
#define HAPPENS_BEFORE(address)
#define HAPPENS_AFTER(address)
#define HIDDEN_FROM_TSAN
#endif

namespace pyllama2c {

namespace {

// What a waiting thread asks for: 128 KiB, which L2 holds, 8 lines before it looks up again.
constexpr int kLinesAhead = 2048, kLinesAtOnce = 8;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#ifdef _OPENMP
// An OpenMP pool does not survive fork(): the child inherits its bookkeeping without its threads
// and hangs at the first region. Putting the pool away just before the fork lets both sides start
// a fresh one.
struct PauseAroundFork {
    PauseAroundFork() {
        pthread_atfork([] { omp_pause_resource_all(omp_pause_hard); }, nullptr, nullptr);
    }
} pause_around_fork;

// How many threads to ask libgomp for. For a smaller team it ends threads, and for the next larger
// one it starts new ones; so a pool stays as large as it was, the rest looking on, until it has
// been too large for a while: threads that look on keep their CPUs busy.
int pool_for(int n_threads) {
    constexpr int kPatience = 256;            // regions
    thread_local int size = 0, patience = 0;  // libgomp has a pool for each thread that calls
    if (n_threads >= size || --patience == 0) {
        size = n_threads;
        patience = kPatience;
    }
    return size;
}
#endif

}  // namespace

// Nobody takes anything meanwhile: called by the last thread to arrive at a barrier.
void Team::deal(int n_items) {
    for (int rank = 0; rank < size_; ++rank) {
        const auto [begin, end] = share(n_items, rank);
        shared_->left[rank].range.store(static_cast<uint64_t>(begin) << 32 | end,
                                        std::memory_order_relaxed);
    }
}

bool Team::take_left(int least, Items& items) {
    for (int i = 0; i < size_; ++i) {
        std::atomic<uint64_t>& left = shared_->left[(rank_ + i) % size_].range;
        uint64_t range = left.load(std::memory_order_relaxed);
        while (true) {
            const int begin = static_cast<int>(range >> 32), end = static_cast<int>(range);
            if (begin == end) break;
            int n = end - begin;
            if (n >= 2 * least) n = (n / 2 + least - 1) / least * least;
            const bool own = i == 0;
            const uint64_t rest = own ? range + (static_cast<uint64_t>(n) << 32) : range - n;
            // No order is needed: items are read and written between barriers only.
            if (left.compare_exchange_weak(range, rest, std::memory_order_relaxed)) {
                items = own ? Items{begin, begin + n, begin + n < end} : Items{end - n, end, false};
                return true;
            }
        }
    }
    return false;
}

void Team::wait(int n_items, const char* next) {
    const int phase = shared_->phase.load(std::memory_order_relaxed);
    if (shared_->arrived.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        shared_->arrived.store(0, std::memory_order_relaxed);
        if (n_items > 0) deal(n_items);
        shared_->phase.store(phase + 1, std::memory_order_release);
        return;
    }
    // The others arrive within microseconds when each has a CPU of its own; where threads
    // outnumber CPUs, spinning on would only keep the late one from running.
    for (int spins = 0; shared_->phase.load(std::memory_order_acquire) == phase; ++spins) {
        if (next != nullptr && spins < kLinesAhead / kLinesAtOnce) {
            for (int i = 0; i < kLinesAtOnce; ++i, next += 64) __builtin_prefetch(next, 0, 2);
        } else if (spins < 4000) {
            relax();
        } else {
            sched_yield();
        }
    }
}

HIDDEN_FROM_TSAN void parallel(int n_threads, const std::function<void(Team&)>& body) {
#ifdef _OPENMP
    if (n_threads > 1) {
        Team::Shared shared(n_threads);
        const int pool = pool_for(n_threads);
        HAPPENS_BEFORE(&shared);
#pragma omp parallel num_threads(pool)
        {
            HAPPENS_AFTER(&shared);
            const int size = std::min(n_threads, omp_get_num_threads());
            Team team(omp_get_thread_num(), size, &shared);
            if (team.rank() < size) body(team);
            HAPPENS_BEFORE(&shared);
        }
        HAPPENS_AFTER(&shared);
        return;
    }
#endif
    static_cast<void>(n_threads);
    Team team(0, 1, nullptr);
    body(team);
}

bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

}  // namespace pyllama2c
