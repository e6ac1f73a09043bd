// Many threads inside one engine at once; built with ThreadSanitizer too.
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/parallel.h"
#include "check.h"
#include "requests.h"

namespace {

struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("interrupted") {}
};

// Each thread submits, waits, is interrupted, cancels, and counts what went wrong.
int live(MockEngine& mock, uint64_t seed) {
    Random random(seed);
    int wrong = 0;
    for (int i = 0; i < 40; ++i) {
        std::vector<Request> requests;
        std::vector<uint64_t> ids;
        for (int n = random.between(1, 4); n > 0; --n) {
            requests.push_back(mock.make_request(random));
            ids.push_back(mock.submit(requests.back(), random.between(0, 2)));
        }
        const bool give_up = random.chance(0.2);
        const bool at_once = random.chance(0.5);
        Results results;
        for (bool going = true; going;) {
            try {
                const auto news = mock.engine->wait(ids, at_once, [&] {
                    if (random.chance(0.05)) throw Interrupted();
                });
                results.add(news);
                going = !news.empty();
            } catch (const Interrupted&) {
                if (give_up) break;
            }
        }
        for (size_t r = 0; r < ids.size(); ++r) {
            mock.engine->cancel(ids[r]);
            const std::vector<int32_t>& tokens = results.tokens(ids[r]);
            const std::vector<int32_t>& expected = requests[r].expected;
            const bool finished = results.finished(ids[r]);
            const bool begins_right = tokens.size() <= expected.size() &&
                                      std::equal(tokens.begin(), tokens.end(), expected.begin());
            wrong += finished ? tokens != expected : !give_up || !begins_right;
        }
    }
    return wrong;
}

// Teams of one size and another: nobody is sent home to be called again at once.
void a_pool_keeps_its_threads() {
    std::mutex mutex;
    std::set<std::thread::id> seen;
    for (int i = 0; i < 200; ++i) {
        const int wanted = i % 2 == 0 ? 4 : 2;
        int ran = 0;
        parallel(wanted, [&](Team&) {
            const std::lock_guard lock(mutex);
            ++ran;
            seen.insert(std::this_thread::get_id());
        });
        CHECK(1 <= ran && ran <= wanted, ran);
    }
    CHECK(seen.size() <= 4, seen.size() << " threads");
}

// Every item is taken once, also those of a thread that takes none, or is slow.
void items_are_taken_once() {
    Random random(7);
    for (int i = 0; i < 300; ++i) {
        const int least = random.between(1, 8), slow = random.between(0, 3);
        const std::vector<int> counts = {random.between(1, 100), 0, random.between(1, 5), 48};
        std::vector<std::atomic<int>> taken(100);
        std::atomic<int> wrong{0};
        parallel(random.between(1, 4), [&](Team& team) {
            for (const int n : counts) {
                team.barrier(n);
                team.barrier();  // which leaves them
                const bool idle = i % 2 == 0 && team.size() > 1 && team.rank() == slow;
                for (Items items; !idle && team.take(least, items);) {
                    for (int item = items.begin; item < items.end; ++item) ++taken[item];
                    if (team.rank() == slow) std::this_thread::yield();
                }
                team.barrier();
                if (team.rank() > 0) continue;
                for (int item = 0; item < 100; ++item) {
                    wrong += taken[item].exchange(0) != (item < n ? 1 : 0);
                }
            }
        });
        CHECK(wrong == 0, wrong << " wrong, least " << least);
    }
}

}  // namespace

int main() {
    a_pool_keeps_its_threads();
    items_are_taken_once();
    for (const int n_blocks : {8, 40}) {
        MockEngine mock(100, n_blocks, 6, 20);
        std::atomic<int> wrong{0};
        std::vector<std::thread> threads;
        for (int t = 0; t < 8; ++t) {
            threads.emplace_back([&mock, &wrong, t] { wrong += live(mock, 100 + t); });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK(wrong == 0, wrong << " wrong texts with " << n_blocks << " blocks");
    }
    return check::finish("test_threads");
}
