// A backend whose "keys and values" are the tokens themselves, so that it notices when a block
// table points to the wrong place: its logits are a hash of the tokens that it finds in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "backends/backend.h"
#include "check.h"
#include "engine/block_manager.h"
#include "engine/sampler.h"
#include "kernels/kernels.h"

using namespace pyllama2c;

class MockBackend : public Backend {
  public:
    MockBackend(int vocab_size, int max_seq_len, int max_rows, int n_blocks, int n_layers = 1)
        : max_rows_(max_rows), cache_(n_blocks * BlockManager::kTokens, -1) {
        config_.dim = 2;
        config_.hidden_dim = config_.n_heads = config_.n_kv_heads = 1;
        config_.n_layers = n_layers;
        config_.vocab_size = vocab_size;
        config_.max_seq_len = max_seq_len;
    }

    const ModelConfig& config() const override { return config_; }
    int max_rows() const override { return max_rows_; }
    int n_blocks() const override {
        return static_cast<int>(cache_.size()) / BlockManager::kTokens;
    }

    int n_threads() const override { return 2; }

    void begin(const Batch& batch) override {
        batch_ = &batch;
        layer_ = 0;
        CHECK(!batch.rows.empty() && batch.rows.size() <= static_cast<size_t>(max_rows_));
        n_rows_computed += batch.rows.size();
        ++n_passes;
    }

    // Stores the tokens in the first layer and reads them in the last, so that a pass that is left
    // between two layers shows whether its blocks stay its own.
    bool advance(Clock::time_point deadline) override {
        const bool timed = deadline != Clock::time_point::max();
        for (; layer_ < config_.n_layers; ++layer_) {
            if (layer_ == 0) store();
            if (timed && layer_ + 1 < config_.n_layers && Clock::now() >= deadline) {
                ++layer_;
                return false;
            }
        }
        logits_.assign(batch_->logit_rows.size() * padded(config_.vocab_size), 0.0f);
        for (size_t i = 0; i < batch_->logit_rows.size(); ++i) {
            const Row& row = batch_->rows[batch_->logit_rows[i]];
            uint64_t hash = 0;
            for (int position = 0; position <= row.position; ++position) {
                hash = mix(hash, place(row.sequence, position));
            }
            fill(hash, config_.vocab_size, logits(static_cast<int>(i)));
        }
        return true;
    }

    float* logits(int i) override { return logits_.data() + i * padded(config_.vocab_size); }
    void softmax(float* x, int n) const override { scalar_kernels.softmax(x, n); }

    // What an engine must generate from this prompt, computed without one. n_keep: as in
    // RequestOptions; where the context slides, max_tokens must end the text.
    std::vector<int32_t> expected(std::vector<int32_t> tokens, const SamplingParams& params,
                                  int n_keep = -1) const {
        const size_t longest = std::min<size_t>(config_.max_seq_len, cache_.size());
        Sampler sampler(params, tokens, tokens.size());
        std::vector<int32_t> text;
        std::vector<float> row(padded(config_.vocab_size));
        Candidates candidates;
        while (params.max_tokens < 0 || text.size() < static_cast<size_t>(params.max_tokens)) {
            while (tokens.size() > longest) {
                if (n_keep < 0) return text;
                const auto kept = tokens.begin() + n_keep;
                tokens.erase(kept, kept + static_cast<std::ptrdiff_t>(longest - n_keep) / 2);
            }
            uint64_t hash = 0;
            for (const int32_t token : tokens) hash = mix(hash, token);
            fill(hash, config_.vocab_size, row.data());
            const int32_t token = sampler.sample(row.data(), config_.vocab_size, *this, candidates);
            if (std::binary_search(params.stop_token_ids.begin(), params.stop_token_ids.end(),
                                   token)) {
                break;
            }
            tokens.push_back(token);
            text.push_back(token);
            sampler.accept(token);
        }
        return text;
    }

    size_t n_rows_computed = 0;
    size_t n_passes = 0;

  private:
    void store() {
        for (const Row& row : batch_->rows) place(row.sequence, row.position) = row.token;
    }

    int32_t& place(int32_t sequence, int position) {
        const int32_t block = batch_->block_tables[sequence][position / BlockManager::kTokens];
        return cache_[block * BlockManager::kTokens + position % BlockManager::kTokens];
    }

    static uint64_t mix(uint64_t hash, int32_t token) {
        hash =
            (hash ^ (static_cast<uint64_t>(token) + 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
        return hash ^ hash >> 29;
    }

    static void fill(uint64_t hash, int n, float* logits) {
        for (int i = 0; i < n; ++i) {
            logits[i] = static_cast<float>(mix(hash, i) >> 40) / (1 << 22);  // 0 to 4
        }
    }

    ModelConfig config_;
    int max_rows_;
    std::vector<int32_t> cache_;  // [block][16] tokens
    const Batch* batch_ = nullptr;
    int layer_ = 0;
    std::vector<float> logits_;
};
