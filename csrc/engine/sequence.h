// One text in the making: its tokens, where its keys and values are, and how it samples.
#pragma once

#include <cstdint>
#include <vector>

#include "backends/backend.h"
#include "engine/sampler.h"

namespace pyllama2c {

enum class FinishReason { kNone, kStop, kLength, kDeadline, kCancelled };

// How a request is to be treated. None of it changes what is written, but for `n_keep`.
struct RequestOptions {
    Clock::time_point deadline = Clock::time_point::max();  // it ends then, done or not
    // -1: the text ends when the context is full. Otherwise the context slides: its first n_keep
    // tokens stay, half of the others are dropped, and the rest is read again at its new place.
    int32_t n_keep = -1;
    // Where the reader has so many tokens to fetch, the request is set aside until he has come
    // down to half of it; 0: never.
    int32_t max_unread = 0;
    bool announce = false;  // its news are told by Engine::compute() and step()
};

struct Sequence {
    // tokens: the prompt (n_prompt of them) and what was generated of the text before.
    Sequence(uint64_t id, std::vector<int32_t> all, size_t n_prompt, SamplingParams params,
             int priority, const RequestOptions& options)
        : id(id),
          priority(priority),
          options(options),
          tokens(std::move(all)),
          text(tokens.begin() + n_prompt, tokens.end()),
          sampler(std::move(params), tokens, n_prompt),
          n_delivered(text.size()) {}

    size_t n_unread() const { return text.size() - n_delivered; }

    const uint64_t id;   // also the order of arrival
    const int priority;  // higher goes first
    const RequestOptions options;
    std::vector<int32_t> tokens;  // the context as the model sees it: prompt, then text
    std::vector<int32_t> text;    // everything generated
    Sampler sampler;

    size_t n_computed = 0;        // of tokens: those whose keys and values are in the cache
    std::vector<int32_t> blocks;  // of the cache, in order
    size_t n_published = 0;       // leading blocks that others can find
    size_t n_start = 0;           // length of the context at the start
    size_t n_cached = 0;          // of it, found in the cache
    bool talking = false;         // has generated a token since it was submitted
    bool set_aside = false;       // until the reader has caught up

    FinishReason finish = FinishReason::kNone;
    size_t n_delivered;  // of text: how far the caller has seen it
    bool announced = false;
    Clock::time_point submitted, first_token, last_token;
};

}  // namespace pyllama2c
