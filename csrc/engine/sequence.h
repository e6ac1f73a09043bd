// One text in the making: its tokens, where its keys and values are, and how it samples.
#pragma once

#include <cstdint>
#include <vector>

#include "backends/backend.h"
#include "engine/sampler.h"

namespace pyllama2c {

enum class FinishReason { kNone, kStop, kLength, kCancelled };

struct Sequence {
    Sequence(uint64_t id, std::vector<int32_t> tokens, size_t n_prompt, SamplingParams params,
             int priority)
        : id(id),
          tokens(std::move(tokens)),
          n_prompt(n_prompt),
          sampler(std::move(params), this->tokens, n_prompt),
          priority(priority) {}

    const uint64_t id;            // also the order of arrival
    std::vector<int32_t> tokens;  // prompt, then text
    const size_t n_prompt;
    Sampler sampler;
    const int priority;  // higher goes first

    size_t n_computed = 0;        // tokens whose keys and values are in the cache
    std::vector<int32_t> blocks;  // of the cache, in order
    size_t n_published = 0;       // leading blocks that others can find
    FinishReason finish = FinishReason::kNone;

    size_t n_delivered = 0;  // of tokens: how far the caller has seen them
    Clock::time_point submitted, first_token, last_token;
    size_t n_cached = 0;  // prompt tokens found in the cache at the first start
};

}  // namespace pyllama2c
