// Memory may run out at any allocation: whoever asked is told, texts of that pass may end there,
// and everything else goes on.
#include <cstdlib>
#include <map>
#include <new>

#include "base/error.h"
#include "check.h"
#include "requests.h"

namespace {

int n_left = -1;  // allocations until some fail; -1: none does
int n_failing = 0;
bool has_failed = false;

void* allocate(size_t size) {
    if (n_left == 0 && n_failing > 0) {
        --n_failing;
        has_failed = true;
        throw std::bad_alloc();
    }
    if (n_left > 0) --n_left;
    void* memory = std::malloc(size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

}  // namespace

void* operator new(size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

// Runs until all have ended, in steps or by waiting. Of the engine's allocations those after `n`
// others fail, as many as `in_a_row`; returns whether there were so many.
bool fails_at(int n, int in_a_row, bool stepping) {
    Random random(7);
    MockEngine mock(100, 12, 4, 9, -1, 3);
    std::map<uint64_t, Request> asked;
    std::vector<uint64_t> ids;
    RequestOptions options;
    options.announce = stepping;
    has_failed = false;
    n_failing = in_a_row;
    int armed = n;
    // The engine's allocations count, the books of the test do not.
    const auto in_the_engine = [&](auto work) {
        n_left = armed;
        try {
            work();
        } catch (const std::bad_alloc&) {
            CHECK(has_failed);
        }
        armed = n_left;
        n_left = -1;
    };
    for (int i = 0; i < 6; ++i) {
        Request request = mock.make_request(random);
        request.params.max_tokens = 5 + 3 * i;
        request.params.repetition_penalty = 1.3f;
        request.expected = mock.backend->expected(request.prompt, request.params);
        options.deadline = i == 2 ? Clock::now() : Clock::time_point::max();
        uint64_t id = 0;
        in_the_engine([&] {
            id = mock.engine->submit(request.prompt, request.prompt.size(), request.params, i % 2,
                                     options);
        });
        if (id == 0) continue;  // refused
        asked[id] = request;
        ids.push_back(id);
    }
    uint64_t extra = 0;
    SamplingParams nothing;
    nothing.max_tokens = 0;
    in_the_engine([&] { extra = mock.engine->submit({1, 2, 3}, 3, {}, 5, options); });
    Results results;
    size_t n_ended = 0;
    for (int turn = 0; turn < 20000 && n_ended < ids.size(); ++turn) {
        std::vector<Progress> news;
        in_the_engine([&] {
            news = stepping ? mock.engine->step(Clock::now(), no_interruption)
                            : mock.engine->wait(ids, false, no_interruption);
        });
        CHECK(mock.engine->consistent(), "allocation " << n);
        for (const Progress& one : news) {
            n_ended += asked.count(one.id) != 0 && one.finish != FinishReason::kNone;
        }
        if (turn == 4) {  // in the middle of a pass where steps end after a layer
            mock.engine->cancel(extra);
            in_the_engine([&] { mock.engine->submit({1, 2}, 2, nothing, 0, options); });
        }
        results.add(news);
    }
    mock.engine->cancel(extra);
    CHECK(n_ended == ids.size(), "allocation " << n << ": " << n_ended << " of " << ids.size());
    for (const auto& [id, request] : asked) {
        std::vector<int32_t> text = results.tokens(id), expected = request.expected;
        if (!results.finished(id)) continue;
        if (results.finish(id) == FinishReason::kDeadline ||
            results.finish(id) == FinishReason::kCancelled) {
            CHECK((has_failed || results.finish(id) == FinishReason::kDeadline) &&
                  text.size() <= expected.size() + 1);
            text.resize(std::min(text.size(), expected.size()));
            expected.resize(text.size());
        }
        CHECK(text == expected, "allocation " << n << ", request " << id);
    }
    // What comes later is served as ever, from a cache that holds what it says.
    const EngineStats stats = mock.engine->stats();
    CHECK(stats.running + stats.waiting == 0 && stats.blocks_held == 0);
    for (const auto& [id, request] : asked) {
        const uint64_t again = mock.submit(request);
        Results last;
        last.add(mock.engine->wait({again}, true, no_interruption));
        CHECK(last.tokens(again) == request.expected, "after allocation " << n);
    }
    return has_failed;
}

}  // namespace

int main() {
    for (const bool stepping : {false, true}) {
        for (const int in_a_row : {1, 2, 5}) {
            int n = 0;
            while (fails_at(n, in_a_row, stepping)) ++n;
            CHECK(n > 100);
        }
    }
    return check::finish("test_out_of_memory");
}
