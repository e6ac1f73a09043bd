#include "engine/sampler.h"

#include <algorithm>

namespace pyllama2c {

namespace {

// The first of the largest. With 16 candidates side by side, which the compiler makes vectors of,
// it takes a third of the time.
int32_t argmax(const float* x, int n) {
    constexpr int kSide = 16;
    float most[kSide];
    std::fill(most, most + kSide, x[0]);
    int i = 0;
    for (; i + kSide <= n; i += kSide) {
        for (int lane = 0; lane < kSide; ++lane) {
            most[lane] = x[i + lane] > most[lane] ? x[i + lane] : most[lane];
        }
    }
    float largest = *std::max_element(most, most + kSide);
    for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    const float* found = std::find(x, x + n, largest);
    return found == x + n ? 0 : static_cast<int32_t>(found - x);  // where x[0] is NaN
}

// Puts the candidates [from, to) of the order from the likeliest down in their places, all before
// them being in theirs.
void sort_best(Candidates& candidates, size_t from, size_t to) {
    const auto more_likely = [](const Candidate& a, const Candidate& b) {
        return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
    };
    const auto first = candidates.begin() + from, last = candidates.begin() + to;
    std::nth_element(first, last, candidates.end(), more_likely);
    std::sort(first, last, more_likely);
}

}  // namespace

Sampler::Sampler(SamplingParams params, const std::vector<int32_t>& tokens, size_t n_prompt)
    : params_(std::move(params)),
      rng_(params_.rng_state),
      penalised_(params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
                 params_.frequency_penalty != 0.0f) {
    if (!penalised_) return;
    for (size_t i = 0; i < tokens.size(); ++i) seen_[tokens[i]] += i >= n_prompt;
}

void Sampler::accept(int32_t token) {
    if (penalised_) ++seen_[token];
}

void Sampler::apply_penalties(float* logits) const {
    for (const auto& [token, times] : seen_) {
        float& logit = logits[token];
        // Keskar et al. 2019: towards "less likely" on either side of zero.
        logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
        if (times > 0) {
            logit -=
                params_.presence_penalty + params_.frequency_penalty * static_cast<float>(times);
        }
    }
}

int32_t Sampler::sample(float* logits, int vocab_size, const Backend& backend,
                        Candidates& candidates) {
    for (const auto& [token, bias] : params_.logit_bias) logits[token] += bias;
    if (penalised_) apply_penalties(logits);
    // So close to 0, the division could overflow; the likeliest has all the probability anyway.
    if (params_.temperature < 1e-20f) return argmax(logits, vocab_size);
    for (int i = 0; i < vocab_size; ++i) logits[i] /= params_.temperature;
    backend.softmax(logits, vocab_size);
    const bool top_p = params_.top_p > 0.0f && params_.top_p < 1.0f;
    if (top_p || params_.top_k > 0 || params_.min_p > 0.0f) {
        return draw_from_best(logits, vocab_size, candidates);
    }
    return draw_from_all(logits, vocab_size);
}

int32_t Sampler::draw_from_all(const float* probabilities, int n) {
    const float coin = rng_.next_float();
    float cumulative = 0.0f;
    for (int i = 0; i < n; ++i) {
        cumulative += probabilities[i];
        if (coin < cumulative) return i;
    }
    // The sum has rounded to less than the coin. A token without probability, as a bias of -1e6
    // makes it, is never chosen, not even as the last one.
    int last = n - 1;
    while (last > 0 && probabilities[last] == 0.0f) --last;
    return last;
}

int32_t Sampler::draw_from_best(const float* probabilities, int n, Candidates& candidates) {
    const float coin = rng_.next_float();
    const bool top_p = params_.top_p > 0.0f && params_.top_p < 1.0f;
    const bool top_p_alone = params_.top_k == 0 && params_.min_p == 0.0f;

    // llama2.c's first cut: what is below this cannot be in the nucleus (Holtzman et al. 2020)
    // unless nothing is above it. min_p (Nguyen et al. 2024) is relative to the best.
    float least = 0.0f;
    if (top_p_alone && n > 1) least = (1.0f - params_.top_p) / static_cast<float>(n - 1);
    if (params_.min_p > 0.0f) least = params_.min_p * probabilities[argmax(probabilities, n)];
    candidates.clear();
    for (int i = 0; i < n; ++i) {
        if (probabilities[i] >= least) candidates.push_back({probabilities[i], i});
    }
    if (candidates.empty()) {  // top_p near 0 on a flat distribution
        return argmax(probabilities, n);
    }
    size_t sorted = 0;  // of the candidates, the likeliest first
    if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < candidates.size()) {
        sort_best(candidates, 0, params_.top_k);
        sorted = params_.top_k;
        candidates.resize(sorted);
    }

    // The nucleus is measured against what top_k and min_p left; alone, against the whole, 1.
    float total = 1.0f;
    if (!top_p_alone) {
        total = 0.0f;
        for (const Candidate& candidate : candidates) total += candidate.probability;
    }
    float kept = 0.0f;
    size_t last = candidates.size() - 1;
    for (size_t i = 0; i < candidates.size(); ++i) {
        if (i == sorted) {  // most nuclei are small
            const size_t more = std::min(candidates.size(), std::max(size_t{64}, 4 * sorted));
            sort_best(candidates, sorted, more);
            sorted = more;
        }
        kept += candidates[i].probability;
        if (top_p && kept > params_.top_p * total) {
            last = i;
            break;
        }
    }
    const float target = coin * kept;
    float cumulative = 0.0f;
    for (size_t i = 0; i <= last; ++i) {
        cumulative += candidates[i].probability;
        if (target < cumulative) return candidates[i].token;
    }
    return candidates[last].token;
}

}  // namespace pyllama2c
