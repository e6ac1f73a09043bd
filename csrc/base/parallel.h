// One parallel region with barriers inside. This pair of files alone knows OpenMP.
#pragma once

#include <stdint.h>

#include <atomic>
#include <functional>
#include <utility>
#include <vector>

namespace pyllama2c {

// Some of the items that a team has to work on.
struct Items {
    int begin, end;
    bool more;  // those behind `end` come next, unless others are faster
};

// The threads of one parallel region, as seen by one of them.
class Team {
  public:
    // What is left of a thread's items, [begin, end): begin in the upper half, end in the lower.
    struct alignas(64) Left {
        std::atomic<uint64_t> range{0};
    };
    struct Shared {
        explicit Shared(int n_threads) : left(n_threads) {}
        alignas(64) std::atomic<int> arrived{0};
        alignas(64) std::atomic<int> phase{0};
        std::vector<Left> left;  // of each thread
    };

    Team(int rank, int size, Shared* shared) : rank_(rank), size_(size), shared_(shared) {}

    int rank() const { return rank_; }
    int size() const { return size_; }

    // All threads wait for each other; what was written before is visible after. Then there are
    // n_items to take(); with 0, what was left before. Whoever waits asks for the memory from
    // `next` on, if not null.
    void barrier(int n_items = 0, const char* next = nullptr) {
        if (size_ > 1) {
            wait(n_items, next);
        } else if (n_items > 0) {
            alone_ = n_items;
        }
    }

    // This thread's [begin, end) of n items.
    std::pair<int, int> share(int n) const { return share(n, rank_); }

    // Takes items to work on, or returns false when none are left: of this thread's share, in
    // order, so that it knows what it will read next; after that from the end of others' shares,
    // for a core may be slower than the rest, or have something else to do. Half of what is left
    // of a share at a time, about `least` at least.
    bool take(int least, Items& items) {
        if (size_ > 1) return take_left(least, items);
        items = {0, std::exchange(alone_, 0), false};
        return items.end > 0;
    }

  private:
    std::pair<int, int> share(int n, int rank) const {
        const auto cut = [&](int r) {
            return static_cast<int>(static_cast<long long>(n) * r / size_);
        };
        return {cut(rank), cut(rank + 1)};
    }
    void wait(int n_items, const char* next);
    void deal(int n_items);
    bool take_left(int least, Items& items);

    int rank_;
    int size_;
    Shared* shared_;
    int alone_ = 0;  // items left of a team of one
};

// Runs body on `n_threads` threads at once (fewer where the runtime gives fewer). The body must
// not throw.
void parallel(int n_threads, const std::function<void(Team&)>& body);

// Whether this build has OpenMP; without it every region has one thread.
bool has_openmp();

}  // namespace pyllama2c
