// How to choose tokens. The Python class of the same name documents and validates these.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace pyllama2c {

struct SamplingParams {
    float temperature = 1.0f;  // 0: greedy
    float top_p = 0.9f;        // outside (0, 1): off
    float min_p = 0.0f;
    int32_t top_k = 0;  // 0: off
    float repetition_penalty = 1.0f;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    std::vector<std::pair<int32_t, float>> logit_bias;
    int32_t max_tokens = -1;              // -1: until the context is full
    std::vector<int32_t> stop_token_ids;  // sorted; BOS and EOS among them unless ignored
    uint64_t rng_state = 1;               // where the random stream stands
};

}  // namespace pyllama2c
