// From logits to a token, in llama2.c's way where llama2.c has one: the same softmax, cut and draw,
// so the same seed tells the same story.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "backends/backend.h"
#include "base/rng.h"
#include "engine/sampling_params.h"

namespace pyllama2c {

struct Candidate {
    float probability;
    int32_t token;
};
using Candidates = std::vector<Candidate>;  // scratch of a thread that samples

// The sampler's memory of one sequence.
class Sampler {
  public:
    // tokens: everything so far, of which the first n_prompt are the prompt.
    Sampler(SamplingParams params, const std::vector<int32_t>& tokens, size_t n_prompt);

    // Chooses from logits [padded(vocab_size)], which are overwritten, in this order: bias,
    // penalties, temperature, softmax, min_p, top_k, top_p, one draw (none when greedy). Takes no
    // memory where `candidates` has room for vocab_size of them.
    int32_t sample(float* logits, int vocab_size, const Backend& backend, Candidates& candidates);
    // Says that the token became part of the text.
    void accept(int32_t token);

    const SamplingParams& params() const { return params_; }

  private:
    void apply_penalties(float* logits) const;
    int32_t draw_from_all(const float* probabilities, int n);
    int32_t draw_from_best(const float* probabilities, int n, Candidates& candidates);

    SamplingParams params_;
    Rng rng_;
    bool penalised_;                             // whether `seen_` is kept
    std::unordered_map<int32_t, int32_t> seen_;  // tokens of prompt and text -> times in the text
};

}  // namespace pyllama2c
