// What a request generates depends on the request alone.
#include <algorithm>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "check.h"
#include "requests.h"

namespace {

// No block may be lost: a request that needs the whole cache must still be served.
void expect_everything_free(MockEngine& mock) {
    const int longest = std::min(mock.backend->config().max_seq_len,
                                 mock.backend->n_blocks() * BlockManager::kTokens);
    Request request;
    request.prompt.assign(longest, 3);
    request.params.max_tokens = 1;
    request.params.temperature = 0;
    Results results;
    const uint64_t id = mock.submit(request);
    results.add(mock.engine->wait({id}, true, no_interruption));
    CHECK(results.tokens(id) == mock.backend->expected(request.prompt, request.params));
}

void a_batch_generates_what_each_does_alone() {
    Random random(1);
    for (int round = 0; round < 60; ++round) {
        MockEngine mock(random.between(40, 130), random.between(3, 60), random.between(1, 20),
                        random.between(1, 70));
        std::map<uint64_t, Request> requests;
        std::vector<uint64_t> ids;
        Results results;
        for (int i = random.between(1, 40); i > 0; --i) {
            const Request request = mock.make_request(random);
            const uint64_t id = mock.submit(request, random.between(0, 2));
            requests[id] = request;
            ids.push_back(id);
            if (random.chance(0.3)) results.add(mock.engine->wait(ids, false, no_interruption));
        }
        const bool at_once = random.chance(0.5);
        for (bool going = true; going;) {
            const auto news = mock.engine->wait(ids, at_once, no_interruption);
            results.add(news);
            going = !news.empty();
        }
        for (const auto& [id, request] : requests) {
            CHECK(results.finished(id), "round " << round << " request " << id);
            CHECK(results.tokens(id) == request.expected, "round " << round << " request " << id);
        }
        expect_everything_free(mock);
    }
}

void cancelling_one_does_not_disturb_the_others() {
    Random random(2);
    for (int round = 0; round < 60; ++round) {
        MockEngine mock(100, random.between(7, 30), random.between(1, 10), random.between(1, 40));
        std::map<uint64_t, Request> requests;
        std::vector<uint64_t> ids;
        Results results;
        for (int event = 0; event < 150; ++event) {
            if (random.chance(0.25)) {
                const Request request = mock.make_request(random);
                ids.push_back(mock.submit(request));
                requests[ids.back()] = request;
            }
            if (!ids.empty() && random.chance(0.15)) {
                const uint64_t id = ids[random.between(0, static_cast<int>(ids.size()) - 1)];
                mock.engine->cancel(id);
                requests.erase(id);
            }
            try {
                results.add(mock.engine->wait(ids, false, [&] {
                    if (random.chance(0.1)) throw std::runtime_error("interrupted");
                }));
            } catch (const std::runtime_error&) {
            }
        }
        for (bool going = true; going;) {
            const auto news = mock.engine->wait(ids, true, no_interruption);
            results.add(news);
            going = !news.empty();
        }
        for (const auto& [id, request] : requests) {
            CHECK(results.tokens(id) == request.expected, "round " << round << " request " << id);
        }
        expect_everything_free(mock);
    }
}

void a_full_cache_only_delays() {
    // Four texts of 64 tokens each want 16 blocks; there are 5.
    MockEngine mock(64, 5, 4, 16);
    std::vector<uint64_t> ids;
    std::vector<Request> requests(4);
    Results results;
    size_t n_tokens = 0;
    for (int i = 0; i < 4; ++i) {
        requests[i].prompt = {i};
        requests[i].params.temperature = 0;
        requests[i].expected = mock.backend->expected({i}, requests[i].params);
        n_tokens += requests[i].expected.size();
        ids.push_back(mock.submit(requests[i]));
    }
    for (const Progress& progress : mock.engine->wait(ids, true, no_interruption)) {
        results.add({progress});
    }
    for (int i = 0; i < 4; ++i) CHECK(results.tokens(ids[i]) == requests[i].expected);
    // Otherwise nobody was sent back to wait, and this test tested nothing.
    CHECK(mock.backend->n_rows_computed > n_tokens, mock.backend->n_rows_computed);
    expect_everything_free(mock);
}

void equal_beginnings_are_computed_once() {
    MockEngine mock(200, 40, 4, 64);
    Request request;
    for (int i = 0; i < 100; ++i) request.prompt.push_back(i % kVocabulary);
    request.params.max_tokens = 1;
    size_t cached[2], rows[2];
    for (int i = 0; i < 2; ++i) {
        const size_t before = mock.backend->n_rows_computed;
        const auto news = mock.engine->wait({mock.submit(request)}, true, no_interruption);
        cached[i] = news.at(0).cached_tokens;
        rows[i] = mock.backend->n_rows_computed - before;
    }
    CHECK(cached[0] == 0 && rows[0] == 100);
    CHECK(cached[1] == 96 && rows[1] == 4);
}

void a_prompt_of_whole_blocks_still_computes_its_last_token() {
    MockEngine mock(64, 8, 2, 64);
    Request request;
    request.prompt.assign(32, 5);
    request.params.max_tokens = 3;
    request.params.temperature = 0;
    const auto expected = mock.backend->expected(request.prompt, request.params);
    for (int i = 0; i < 3; ++i) {
        const auto news = mock.engine->wait({mock.submit(request)}, true, no_interruption);
        CHECK(news.at(0).tokens == expected);
    }
}

void texts_end_where_they_should() {
    MockEngine mock(32, 8, 4, 64);
    Request request;
    request.prompt = {3, 4, 5};
    request.params.temperature = 0;
    auto run = [&] {
        return mock.engine->wait({mock.submit(request)}, true, no_interruption).at(0);
    };
    Progress whole = run();
    CHECK(whole.finish == FinishReason::kLength);
    CHECK(whole.tokens.size() == 30);  // the token that the last place in the context predicts too
    request.params.max_tokens = 7;
    Progress seven = run();
    CHECK(seven.finish == FinishReason::kLength);
    CHECK((seven.tokens == std::vector<int32_t>(whole.tokens.begin(), whole.tokens.begin() + 7)));
    request.params.max_tokens = 0;
    Progress none = run();
    CHECK(none.tokens.empty() && none.finish == FinishReason::kLength);
    request.params.max_tokens = -1;
    const int32_t stop = whole.tokens[5];
    const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), stop);
    request.params.stop_token_ids = {stop};
    Progress stopped = run();
    CHECK(stopped.finish == FinishReason::kStop);
    CHECK((stopped.tokens == std::vector<int32_t>(whole.tokens.begin(), first)));
}

void the_important_go_first() {
    MockEngine mock(64, 8, 1, 64);
    Request request;
    request.params.max_tokens = 5;
    request.prompt = {3};
    const uint64_t low = mock.submit(request, 0), high = mock.submit(request, 5);
    const auto news = mock.engine->wait({low, high}, false, no_interruption);
    CHECK(news.size() == 1 && news[0].id == high);
}

void impossible_requests_are_refused_at_once() {
    MockEngine mock(100, 4, 4, 16);
    const SamplingParams params;
    CHECK_THROWS(mock.engine->submit({}, 0, params, 0), ArgumentError);
    CHECK_THROWS(mock.engine->submit({kVocabulary}, 1, params, 0), ArgumentError);
    CHECK_THROWS(mock.engine->submit({-1}, 1, params, 0), ArgumentError);
    CHECK_THROWS(mock.engine->submit(std::vector<int32_t>(65, 3), 65, params, 0), CapacityError);
    mock.engine->cancel(12345);
    CHECK(mock.engine->wait({12345}, true, no_interruption).empty());
    CHECK(mock.backend->n_passes == 0);
    expect_everything_free(mock);
}

// Vocabularies that are worth a thread for each text; with a deadline, some have theirs later.
void several_threads_choose_what_one_does() {
    Random random(9);
    for (int round = 0; round < 20; ++round) {
        MockEngine mock(40, 60, 8, 40, -1, 1, 20000);
        std::map<uint64_t, Request> requests;
        Results results;
        for (int i = 0; i < 8; ++i) {
            Request request = mock.make_request(random);
            request.params.temperature = 1;
            request.params.top_p = 0.9f;
            request.params.max_tokens = 4;
            request.expected = mock.backend->expected(request.prompt, request.params);
            requests[mock.submit(request)] = request;
        }
        std::vector<uint64_t> ids;
        for (const auto& [id, request] : requests) ids.push_back(id);
        while (mock.engine->has_work()) {
            mock.engine->step(Clock::now() + std::chrono::microseconds(200), no_interruption);
            results.add(mock.engine->collect(ids));
        }
        for (const auto& [id, request] : requests) CHECK(results.tokens(id) == request.expected);
    }
}

// Who waits for his reader does not wait for memory.
void a_slow_reader_keeps_nobody_out() {
    MockEngine mock(64, 4, 8, 64, 0);
    Engine& engine = *mock.engine;
    const auto submit = [&](size_t length, const RequestOptions& options) {
        SamplingParams params;
        params.max_tokens = 4;
        return engine.submit(std::vector<int32_t>(length, 5), length, params, 0, options);
    };
    const auto step = [&] { engine.step(Clock::time_point::max(), [] {}); };
    RequestOptions slow;
    slow.max_unread = 1;
    submit(5, slow);
    step();
    const uint64_t running = submit(60, {});
    step();
    const uint64_t waiting = submit(61, {});
    step();
    CHECK(engine.stats().running == 1 && engine.stats().waiting == 2);
    engine.cancel(running);
    engine.cancel(waiting);
    CHECK(!engine.has_work());
    submit(60, {});  // throws where it is taken for one too many
    CHECK(engine.has_work());
}

}  // namespace

int main() {
    a_slow_reader_keeps_nobody_out();
    a_batch_generates_what_each_does_alone();
    cancelling_one_does_not_disturb_the_others();
    a_full_cache_only_delays();
    equal_beginnings_are_computed_once();
    a_prompt_of_whole_blocks_still_computes_its_last_token();
    texts_end_where_they_should();
    the_important_go_first();
    impossible_requests_are_refused_at_once();
    several_threads_choose_what_one_does();
    return check::finish("test_engine");
}
