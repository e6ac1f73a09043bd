// Random requests, and an engine with a mock backend to serve them.
#pragma once

#include <memory>
#include <unordered_map>
#include <utility>

#include "engine/engine.h"
#include "mock_backend.h"
#include "random.h"

constexpr int kVocabulary = 60;

struct Request {
    std::vector<int32_t> prompt;
    SamplingParams params;
    std::vector<int32_t> expected;
};

struct MockEngine {
    MockEngine(int max_seq_len, int n_blocks, int max_sequences, int prefill_chunk,
               int64_t max_waiting = -1, int n_layers = 1, int vocab_size = kVocabulary) {
        auto mock = std::make_unique<MockBackend>(
            vocab_size, max_seq_len, max_sequences + prefill_chunk, n_blocks, n_layers);
        backend = mock.get();
        engine =
            std::make_unique<Engine>(std::move(mock), max_sequences, prefill_chunk, max_waiting);
    }

    uint64_t submit(const Request& request, int priority = 0) {
        return engine->submit(request.prompt, request.prompt.size(), request.params, priority);
    }

    // Some prompts begin alike, some end early, some run into the end of the context.
    Request make_request(Random& random) const {
        const int longest =
            std::min(backend->config().max_seq_len, backend->n_blocks() * BlockManager::kTokens);
        Request request;
        const int length = random.between(1, std::min(longest, 60));
        const int family = random.between(1, 3);
        for (int i = 0; i < length; ++i) request.prompt.push_back((family * 7 + i) % kVocabulary);
        if (random.chance(0.7)) request.prompt.back() = random.between(0, kVocabulary - 1);
        SamplingParams& params = request.params;
        params.temperature = random.chance(0.3) ? 0.0f : random.value(0.5f, 1.5f);
        params.top_p = random.chance(0.5) ? 1.0f : random.value(0.1f, 1.0f);
        params.top_k = random.chance(0.7) ? 0 : random.between(1, 20);
        params.repetition_penalty = random.chance(0.7) ? 1.0f : 1.3f;
        params.max_tokens = random.chance(0.2) ? -1 : random.between(0, 50);
        if (random.chance(0.5)) params.stop_token_ids = {1, 2};
        params.rng_state = random.bits();
        request.expected = backend->expected(request.prompt, params);
        return request;
    }

    MockBackend* backend;
    std::unique_ptr<Engine> engine;
};

inline void no_interruption() {}

// What came of each request.
class Results {
  public:
    void add(const std::vector<Progress>& news) {
        for (const Progress& progress : news) {
            std::vector<int32_t>& tokens = tokens_[progress.id];
            tokens.insert(tokens.end(), progress.tokens.begin(), progress.tokens.end());
            if (progress.finish != FinishReason::kNone) finishes_[progress.id] = progress.finish;
        }
    }
    const std::vector<int32_t>& tokens(uint64_t id) { return tokens_[id]; }
    bool finished(uint64_t id) const { return finishes_.count(id) != 0; }
    FinishReason finish(uint64_t id) const { return finishes_.at(id); }

  private:
    std::unordered_map<uint64_t, std::vector<int32_t>> tokens_;
    std::unordered_map<uint64_t, FinishReason> finishes_;
};
