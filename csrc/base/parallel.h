// One parallel region with barriers inside. This pair of files alone knows OpenMP.
#pragma once

#include <atomic>
#include <functional>
#include <utility>

namespace pyllama2c {

// The threads of one parallel region, as seen by one of them.
class Team {
  public:
    struct Shared {
        alignas(64) std::atomic<int> arrived{0};
        alignas(64) std::atomic<int> phase{0};
    };

    Team(int rank, int size, Shared* shared) : rank_(rank), size_(size), shared_(shared) {}

    int rank() const { return rank_; }
    int size() const { return size_; }

    // All threads wait for each other; what was written before is visible after.
    void barrier();

    // This thread's [begin, end) of n items.
    std::pair<int, int> share(int n) const {
        const auto cut = [&](int rank) {
            return static_cast<int>(static_cast<long long>(n) * rank / size_);
        };
        return {cut(rank_), cut(rank_ + 1)};
    }

  private:
    int rank_;
    int size_;
    Shared* shared_;
};

// Runs body on `n_threads` threads at once (fewer where the runtime gives fewer). The body must
// not throw.
void parallel(int n_threads, const std::function<void(Team&)>& body);

// Whether this build has OpenMP; without it every region has one thread.
bool has_openmp();

}  // namespace pyllama2c
