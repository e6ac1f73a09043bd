// Random events in random order, with everything that a request can ask for: no block is lost or
// freed twice, nobody waits for ever, and every text is the one that is written alone.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "base/rng.h"
#include "check.h"
#include "requests.h"

namespace {

constexpr Clock::time_point kNever = Clock::time_point::max();

struct Expectation {
    std::vector<int32_t> text;  // what is still to come when it is submitted
    bool may_end_early = false;
};

// An engine, everything that was asked of it, and everything that came of it.
class Story {
  public:
    explicit Story(Random& random)
        : random_(random),
          mock_(random.between(30, 130), random.between(3, 40), random.between(1, 12),
                random.between(1, 60), random.chance(0.5) ? -1 : random.between(0, 10),
                random.between(1, 3)) {}

    void anything() {
        const int event = random_.between(0, 9);
        if (event <= 2) {
            submit();
        } else if (event == 3 && !ids_.empty()) {
            cancel(ids_[random_.between(0, static_cast<int>(ids_.size()) - 1)]);
        } else if (event == 4) {
            add(engine().collect(some_ids()));
        } else if (event == 5) {
            add(engine().collect(engine().compute(Clock::now(), no_interruption)));
        } else if (event == 6) {
            wait();
        } else {
            // Deadlines that cut passes short, that are over, and none.
            const auto budget = std::chrono::microseconds(random_.between(-2, 20));
            add(engine().step(random_.chance(0.3) ? kNever : Clock::now() + budget,
                              no_interruption));
        }
        CHECK(engine().consistent());
    }

    // Everybody reads now; then all texts must end.
    void finish() {
        for (int passes = 0; !ids_.empty(); ++passes) {
            CHECK(passes < 20000, ids_.size() << " requests wait for ever");
            if (passes >= 20000) return;
            add(engine().step(kNever, no_interruption));
            add(engine().collect(ids_));
        }
        // A pass may have been cut short whose texts have all ended since.
        CHECK(engine().step(kNever, no_interruption).empty());
        const EngineStats stats = engine().stats();
        CHECK(stats.running == 0 && stats.waiting == 0 && stats.blocks_held == 0);
        CHECK(stats.finished + stats.cancelled + stats.expired == stats.requests);
        CHECK(engine().consistent() && !engine().has_work());
        n_preempted += stats.preempted;
        n_refused += stats.refused;
    }

    size_t n_finished = 0, n_preempted = 0, n_refused = 0;

  private:
    Engine& engine() { return *mock_.engine; }

    void submit() {
        Request request = mock_.make_request(random_);
        RequestOptions options;
        Expectation expectation;
        if (random_.chance(0.2)) {
            const auto shortest = static_cast<int>(engine().max_length()) - 2;
            options.n_keep = random_.between(0, std::min(shortest, 20));
            request.params.max_tokens = random_.between(0, 200);
            request.expected =
                mock_.backend->expected(request.prompt, request.params, options.n_keep);
        }
        if (random_.chance(0.3)) options.max_unread = random_.between(1, 9);
        options.announce = random_.chance(0.7);
        if (random_.chance(0.2)) {
            const int64_t choices[] = {-1, random_.between(0, 300), 3600 * 1000000ll};
            const int choice = random_.between(0, 2);
            options.deadline = Clock::now() + std::chrono::microseconds(choices[choice]);
            expectation.may_end_early = choice < 2;
        }
        std::vector<int32_t> tokens = request.prompt;
        expectation.text = request.expected;
        if (random_.chance(0.3)) {  // a text that is continued
            const int n = random_.between(0, static_cast<int>(request.expected.size()));
            const auto middle = request.expected.begin() + n;
            if (tokens.size() + n <= engine().max_length() || options.n_keep >= 0) {
                tokens.insert(tokens.end(), request.expected.begin(), middle);
                expectation.text = {middle, request.expected.end()};
                Rng rng(request.params.rng_state);
                for (int i = 0; i < n && request.params.temperature > 0; ++i) rng.next_float();
                request.params.rng_state = rng.state();
            }
        }
        const size_t room = engine().max_length() + 1 - request.prompt.size();
        if (options.n_keep < 0 && request.params.max_tokens > static_cast<int>(room) &&
            engine().max_length() < static_cast<size_t>(mock_.backend->config().max_seq_len)) {
            CHECK_THROWS(engine().submit(tokens, request.prompt.size(), request.params, 0, options),
                         CapacityError);
            request.params.max_tokens = -1;  // then it ends where it has to, as is expected
        }
        try {
            const uint64_t id = engine().submit(tokens, request.prompt.size(), request.params,
                                                random_.between(-1, 1), options);
            ids_.push_back(id);
            expected_[id] = expectation;
        } catch (const OverloadedError&) {
            const EngineStats stats = engine().stats();
            CHECK(stats.running + stats.waiting >= 1);
        }
    }

    void cancel(uint64_t id) {
        engine().cancel(id);
        forget(id);
        CHECK(engine().collect({id}).empty());
    }

    void wait() {
        // Interrupted at last, for nobody reads what the others wait for.
        const std::vector<uint64_t> ids = some_ids();
        int calls = 0;
        try {
            add(engine().wait(ids, random_.chance(0.1), [&] {
                if (++calls > random_.between(0, 5)) throw std::runtime_error("interrupted");
            }));
        } catch (const std::runtime_error&) {
        }
    }

    std::vector<uint64_t> some_ids() {
        std::vector<uint64_t> ids;
        for (const uint64_t id : ids_) {
            if (random_.chance(0.5)) ids.push_back(id);
        }
        return ids;
    }

    void add(const std::vector<Progress>& news) {
        for (const Progress& progress : news) {
            const uint64_t id = progress.id;
            CHECK(expected_.count(id) == 1, "news of a request that has ended, " << id);
            std::vector<int32_t>& text = texts_[id];
            text.insert(text.end(), progress.tokens.begin(), progress.tokens.end());
            const Expectation& expectation = expected_[id];
            const bool early = progress.finish == FinishReason::kDeadline;
            CHECK(!early || expectation.may_end_early, id);
            if (progress.finish == FinishReason::kNone || early) {
                CHECK(text.size() <= expectation.text.size() &&
                          std::equal(text.begin(), text.end(), expectation.text.begin()),
                      id);
            } else {
                CHECK(text == expectation.text, id);
            }
            if (progress.finish == FinishReason::kNone) continue;
            forget(id);
            ++n_finished;
        }
    }

    void forget(uint64_t id) {
        ids_.erase(std::find(ids_.begin(), ids_.end(), id));
        expected_.erase(id);
        texts_.erase(id);
    }

    Random& random_;
    MockEngine mock_;
    std::vector<uint64_t> ids_;  // not ended yet
    std::map<uint64_t, Expectation> expected_;
    std::map<uint64_t, std::vector<int32_t>> texts_;
};

void any_events_in_any_order(int n_events) {
    Random random(11);
    size_t n_finished = 0, n_preempted = 0, n_refused = 0;
    for (int events = 0; events < n_events;) {
        Story story(random);
        for (int i = random.between(10, 600); i > 0; --i, ++events) story.anything();
        story.finish();
        n_finished += story.n_finished;
        n_preempted += story.n_preempted;
        n_refused += story.n_refused;
    }
    std::printf("%zu requests finished, %zu preemptions, %zu refused\n", n_finished, n_preempted,
                n_refused);
    CHECK(n_finished * 10 > static_cast<size_t>(n_events));
    CHECK(n_preempted * 100 > static_cast<size_t>(n_events));
    CHECK(n_refused > 0);
}

// New ones keep coming, and yet each ends within the time that those before it need.
void nobody_starves() {
    Random random(12);
    for (int round = 0; round < 40; ++round) {
        MockEngine mock(64, random.between(4, 12), random.between(1, 6), random.between(1, 40));
        constexpr size_t kLongest = 64 + 1;  // passes that a request needs at most, alone
        std::map<uint64_t, size_t> latest;   // pass in which it must have ended
        Request slow = mock.make_request(random);
        slow.params.max_tokens = 40;
        slow.params.stop_token_ids.clear();
        RequestOptions options;
        options.max_unread = 1;  // nobody ever reads it: it must not be in anybody's way
        mock.engine->submit(slow.prompt, slow.prompt.size(), slow.params, 0, options);
        size_t finished = 0;
        for (size_t pass = 0; pass < 1500; ++pass) {
            while (latest.size() < 20) {
                const Request request = mock.make_request(random);
                latest[mock.submit(request)] = pass + (latest.size() + 2) * 2 * kLongest;
            }
            mock.engine->compute(Clock::now(), no_interruption);
            std::vector<uint64_t> ids;
            for (const auto& [id, end] : latest) ids.push_back(id);
            for (const Progress& progress : mock.engine->collect(ids)) {
                if (progress.finish == FinishReason::kNone) continue;
                latest.erase(progress.id);
                ++finished;
            }
            for (const auto& [id, end] : latest) CHECK(pass <= end, "request " << id);
        }
        CHECK(finished > 20);
    }
}

// compute() has all the time of the world, but tells of beginnings and ends at once.
void first_tokens_and_ends_are_told_at_once() {
    MockEngine mock(64, 6, 2, 16);
    Request request;
    request.prompt = {3, 4};
    request.params.max_tokens = 10;
    const auto tell = [&](size_t n_tokens, FinishReason finish) {
        const auto ids = mock.engine->compute(Clock::time_point::max(), no_interruption);
        const auto news = mock.engine->collect(ids);
        CHECK(news.size() == 1 && news[0].tokens.size() == n_tokens && news[0].finish == finish);
    };
    RequestOptions options;
    options.announce = true;
    mock.engine->submit(request.prompt, request.prompt.size(), request.params, 0, options);
    tell(1, FinishReason::kNone);
    tell(9, FinishReason::kLength);
    // One that goes on: its first token is its third. One that is at its end before it begins.
    for (const int32_t token : mock.backend->expected(request.prompt, request.params)) {
        if (request.prompt.size() < 4) request.prompt.push_back(token);
    }
    mock.engine->submit(request.prompt, 2, request.params, 0, options);
    tell(1, FinishReason::kNone);
    request.params.max_tokens = 2;
    mock.engine->submit(request.prompt, 2, request.params, 0, options);
    const auto ids = mock.engine->compute(Clock::time_point::max(), no_interruption);
    CHECK(ids.size() == 2);
    CHECK(mock.engine->collect(ids).size() == 2);
}

// Before a reader is so far behind that his text is set aside, he is told.
void half_of_what_may_be_unread_is_told_at_once() {
    MockEngine mock(64, 6, 2, 16);
    RequestOptions options;
    options.announce = true;
    options.max_unread = 7;
    Request request;
    request.prompt = {3, 4};
    request.params.max_tokens = 10;
    mock.engine->submit(request.prompt, request.prompt.size(), request.params, 0, options);
    for (const size_t n_tokens : {1, 4, 4, 1}) {
        const auto ids = mock.engine->compute(Clock::time_point::max(), no_interruption);
        const auto news = mock.engine->collect(ids);
        CHECK(news.size() == 1 && news[0].tokens.size() == n_tokens);
    }
}

// The low ones wait while high ones keep coming, and no longer.
void low_priorities_wait_and_then_end() {
    MockEngine mock(64, 6, 2, 16);
    Request request;
    request.prompt = {3, 4};
    request.params.max_tokens = 10;
    const uint64_t low = mock.submit(request, -5);
    std::vector<uint64_t> high;
    for (int i = 0; i < 200; ++i) {
        if (i % 4 == 0) high.push_back(mock.submit(request, 5));
        mock.engine->compute(Clock::now(), no_interruption);
        mock.engine->collect(high);
    }
    const auto ended = mock.engine->wait({low}, true, no_interruption);
    CHECK(ended.size() == 1 && ended[0].finish == FinishReason::kLength);
    CHECK(ended[0].tokens == mock.backend->expected(request.prompt, request.params));
}

}  // namespace

int main(int argc, char** argv) {
    any_events_in_any_order(argc > 1 ? std::atoi(argv[1]) : 100000);
    nobody_starves();
    first_tokens_and_ends_are_told_at_once();
    half_of_what_may_be_unread_is_told_at_once();
    low_priorities_wait_and_then_end();
    return check::finish("test_events");
}
