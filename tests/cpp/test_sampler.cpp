// The sampler against its definition, and the random stream against llama2.c's arithmetic.
#include "engine/sampler.h"

#include <cmath>
#include <map>

#include "base/rng.h"
#include "check.h"
#include "mock_backend.h"
#include "random.h"

namespace {

const MockBackend backend(4, 16, 1, 1);

int32_t sample(const SamplingParams& params, std::vector<float> logits,
               const std::vector<int32_t>& tokens = {}, size_t n_prompt = 0) {
    const int n = static_cast<int>(logits.size());
    logits.resize(padded(n));
    Candidates candidates;
    return Sampler(params, tokens, n_prompt).sample(logits.data(), n, backend, candidates);
}

SamplingParams greedy() {
    SamplingParams params;
    params.temperature = 0;
    return params;
}

// How often each token is drawn in 20,000 draws from one stream.
std::map<int32_t, double> shares(const SamplingParams& params, const std::vector<float>& logits) {
    constexpr int kDraws = 20000;
    Sampler sampler(params, {}, 0);
    Candidates candidates;
    std::map<int32_t, double> result;
    for (int i = 0; i < kDraws; ++i) {
        std::vector<float> row = logits;
        row.resize(padded(static_cast<int>(logits.size())));
        result[sampler.sample(row.data(), static_cast<int>(logits.size()), backend, candidates)] +=
            1.0 / kDraws;
    }
    return result;
}

std::vector<float> logs(std::initializer_list<double> probabilities) {
    std::vector<float> result;
    for (const double p : probabilities) result.push_back(static_cast<float>(std::log(p)));
    return result;
}

bool close(double a, double b) { return std::abs(a - b) < 0.015; }

void random_stream() {
    // xorshift64* by hand for seed 1: the state after one step is 0x2000001.
    Rng rng(1);
    const float first = rng.next_float();
    CHECK(rng.state() == 0x2000001ull, rng.state());
    const uint64_t product = 0x2000001ull * 0x2545F4914F6CDD1Dull;
    CHECK(first == static_cast<float>(product >> 40) / 16777216.0f);
    Rng continued(rng.state());
    CHECK(continued.next_float() == rng.next_float());
    Rng zero(0);  // a seed like any other
    CHECK(zero.next_float() != zero.next_float());
}

void greedy_takes_the_best() {
    CHECK(sample(greedy(), {0, 3, 1, 3}) == 1);  // the first of equals
    CHECK(sample(greedy(), {-5, -3, -4}) == 1);
}

void the_shares_are_the_probabilities() {
    const std::vector<float> logits = logs({0.5, 0.3, 0.15, 0.05});
    SamplingParams params;
    params.top_p = 1;
    auto seen = shares(params, logits);
    CHECK(close(seen[0], 0.5) && close(seen[1], 0.3) && close(seen[2], 0.15) &&
          close(seen[3], 0.05));
    params.temperature = 0.5;  // squares the odds
    seen = shares(params, logits);
    CHECK(close(seen[0], 0.25 / 0.365) && close(seen[1], 0.09 / 0.365));
}

void each_cut_keeps_what_it_should() {
    const std::vector<float> logits = logs({0.15, 0.5, 0.05, 0.3});
    SamplingParams params;
    params.top_p = 0.7f;  // 0.5 + 0.3 exceed it
    auto seen = shares(params, logits);
    CHECK(seen.size() == 2 && close(seen[1], 0.5 / 0.8) && close(seen[3], 0.3 / 0.8));
    params.top_p = 1;
    params.top_k = 3;
    seen = shares(params, logits);
    CHECK(seen.size() == 3 && seen.count(2) == 0 && close(seen[0], 0.15 / 0.95));
    params.top_k = 1;
    CHECK(shares(params, logits).size() == 1);
    params.top_k = 0;
    params.min_p = 0.25f;  // of 0.5
    seen = shares(params, logits);
    CHECK(seen.size() == 3 && seen.count(2) == 0);
    params.top_k = 3;
    params.min_p = 0;
    params.top_p = 0.6f;  // of 0.95: 0.57 needs both
    seen = shares(params, logits);
    CHECK(seen.size() == 2 && seen.count(1) == 1 && seen.count(3) == 1);
}

void tiny_top_p_still_chooses() {
    SamplingParams params;
    params.top_p = 1e-6f;
    CHECK(sample(params, std::vector<float>(1000, 0.0f)) == 0);
    CHECK(sample(params, {0, 0, 2, 0}) == 2);
    CHECK(sample(params, {0.0f}) == 0);  // a vocabulary of one
}

void penalties_and_bias() {
    SamplingParams params = greedy();
    params.repetition_penalty = 2;
    CHECK(sample(params, {3, 2, 0}, {0}, 1) == 1);       // 3 / 2 < 2
    CHECK(sample(params, {-1, -1.5, -9}, {0}, 1) == 1);  // -1 * 2 < -1.5
    params = greedy();
    params.presence_penalty = 1.5f;
    CHECK(sample(params, {3, 2, 0}, {0}, 1) == 0);  // a prompt's tokens are not "generated"
    CHECK(sample(params, {3, 2, 0}, {1, 0}, 1) == 1);
    params = greedy();
    params.frequency_penalty = 0.6f;
    CHECK(sample(params, {3, 2, 0}, {1, 0}, 1) == 0);
    CHECK(sample(params, {3, 2, 0}, {1, 0, 0}, 1) == 1);
    params = greedy();
    params.logit_bias = {{2, 100.0f}};
    CHECK(sample(params, {3, 2, 0}) == 2);
    params.logit_bias = {{0, -1e6f}};
    CHECK(sample(params, {3, 2, 0}) == 1);
}

void what_is_banned_is_never_drawn() {
    SamplingParams params;
    params.top_p = 1;
    params.rng_state = 0x6519FEB078245D43ull;
    CHECK(Rng(params.rng_state).next_float() == 1 - 0x1p-24f);  // the largest number there is
    // Twelve twelfths add up to 1 - 2^-23 in float, so the draw runs past them.
    params.logit_bias = {{12, -1e6f}};
    CHECK(sample(params, std::vector<float>(13, 0.0f)) == 11);
}

void accepted_tokens_count() {
    SamplingParams params = greedy();
    params.frequency_penalty = 1;
    Sampler sampler(params, {0}, 1);
    Candidates candidates;
    std::string text;
    for (int i = 0; i < 6; ++i) {
        std::vector<float> logits = {2.5f, 2, 0};
        logits.resize(padded(3));
        const int32_t token = sampler.sample(logits.data(), 3, backend, candidates);
        sampler.accept(token);
        text += static_cast<char>('0' + token);
    }
    CHECK(text == "010101", text);
}

void survives_any_logits() {
    Random random(9);
    const float infinity = std::numeric_limits<float>::infinity();
    const float special[] = {0, infinity, -infinity, std::nanf(""), 3e38f, -3e38f, 1};
    for (int i = 0; i < 20000; ++i) {
        const int n = random.between(1, 40);
        std::vector<float> logits(n);
        for (float& x : logits) {
            x = random.chance(0.5) ? random.value(-5, 5) : special[random.between(0, 6)];
        }
        SamplingParams params;
        params.temperature = random.chance(0.3) ? 0.0f : random.value(0.01f, 3.0f);
        params.top_p = random.value(0, 1);
        params.min_p = random.chance(0.5) ? 0.0f : random.value(0, 1);
        params.top_k = random.chance(0.5) ? 0 : random.between(1, 50);
        params.repetition_penalty = random.value(0.5f, 2.0f);
        params.rng_state = random.bits();
        const int32_t token = sample(params, logits, {0, n - 1}, 1);
        CHECK(token >= 0 && token < n);
    }
}

}  // namespace

int main() {
    random_stream();
    greedy_takes_the_best();
    the_shares_are_the_probabilities();
    each_cut_keeps_what_it_should();
    tiny_top_p_still_chooses();
    penalties_and_bias();
    what_is_banned_is_never_drawn();
    accepted_tokens_count();
    survives_any_logits();
    return check::finish("test_sampler");
}
