// Llama (Touvron et al. 2023) as llama2.c runs it: RMSNorm (Zhang and Sennrich 2019), rotary
// positions (Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
//
// One parallel region per pass. Each step below is shared out to the threads by rows, heads or
// output panels, and ends in a barrier.
#include "backends/cpu/transformer.h"

#include <algorithm>
#include <cmath>

namespace pyllama2c {

CpuTransformer::CpuTransformer(std::shared_ptr<const Weights> weights, int n_threads, int max_rows,
                               int n_blocks)
    : weights_(std::move(weights)),
      kernels_(kernels()),
      n_threads_(n_threads),
      max_rows_(max_rows),
      kv_(config(), n_blocks),
      head_size_(config().head_size()),
      n_heads_(config().n_heads),
      n_kv_heads_(config().n_kv_heads),
      dim_(padded(config().dim)),
      qkv_(padded(config().dim + 2 * config().kv_dim())),
      hidden_(padded(config().hidden_dim)),
      logits_stride_(padded(config().vocab_size)),
      scores_(n_threads) {
    const size_t rows = max_rows;
    x_ = Buffer<float>(rows * dim_);
    normed_ = Buffer<float>(rows * dim_);
    qkv_rows_ = Buffer<float>(rows * qkv_);
    attended_ = Buffer<float>(rows * dim_);
    gate_up_ = Buffer<float>(rows * 2 * hidden_);
    gated_ = Buffer<float>(rows * hidden_);
    logits_ = Buffer<float>(rows * logits_stride_);
    const size_t angles = static_cast<size_t>(config().max_seq_len) * head_size_;
    cos_ = Buffer<float>(angles);
    sin_ = Buffer<float>(angles);
    for (Buffer<float>& scores : scores_) scores = Buffer<float>(padded(config().max_seq_len));
}

void CpuTransformer::begin(const Batch& batch) {
    batch_ = &batch;
    layer_ = 0;
    int last = 0;
    for (const Row& row : batch.rows) last = std::max(last, row.position);
    fill_rotary_tables(last + 1);
}

bool CpuTransformer::advance(Clock::time_point deadline) {
    const int threads = useful_threads(static_cast<int>(batch_->rows.size()));
    out_of_time_ = false;
    parallel(threads, [&](Team& team) { forward(team, deadline); });
    return !out_of_time_;
}

void CpuTransformer::forward(Team& team, Clock::time_point deadline) {
    const int n_layers = config().n_layers;
    int layer = layer_;
    if (layer == 0) embed(team);
    while (layer < n_layers) {
        attention(team, layer);
        feed_forward(team, layer);
        ++layer;
        if (team.rank() == 0) {
            layer_ = layer;
            if (deadline != Clock::time_point::max()) out_of_time_ = Clock::now() >= deadline;
        }
        team.barrier();
        if (out_of_time_) return;
    }
    classify(team);
}

void CpuTransformer::embed(Team& team) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()));
    for (int r = begin; r < end; ++r) {
        weights_->embed(batch_->rows[r].token, x_.data() + static_cast<size_t>(r) * dim_);
    }
    // norm() shares the rows out in the same way: no barrier.
}

// normed = rmsnorm(x)
void CpuTransformer::norm(Team& team, const float* weight) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()));
    for (int r = begin; r < end; ++r) {
        kernels_.rmsnorm(x_.data() + static_cast<size_t>(r) * dim_, weight, config().dim,
                         config().norm_eps, normed_.data() + static_cast<size_t>(r) * dim_);
    }
    team.barrier();
}

// y (+)= W x, this thread's panels of it, for all rows.
void CpuTransformer::multiply(Team& team, const Matrix& w, const float* x, size_t x_stride,
                              int rows, float* y, size_t y_stride, bool accumulate) const {
    const auto [begin, end] = team.share(w.panels);
    kernels_.matmul_f32(w.data + static_cast<size_t>(begin) * w.k * kLanes, w.k, end - begin, x,
                        x_stride, rows, y + static_cast<size_t>(begin) * kLanes, y_stride,
                        accumulate);
}

// x += wo (attention(rope(q), rope(k), v)) with q, k, v = qkv (norm(x))
void CpuTransformer::attention(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = static_cast<int>(batch_->rows.size());
    norm(team, w.attention_norm);
    multiply(team, w.qkv, normed_.data(), dim_, rows, qkv_rows_.data(), qkv_, false);
    team.barrier();
    store_keys_and_values(team, layer);
    team.barrier();
    attend(team, layer);
    team.barrier();
    multiply(team, w.wo, attended_.data(), dim_, rows, x_.data(), dim_, true);
    team.barrier();
}

void CpuTransformer::store_keys_and_values(Team& team, int layer) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()) * n_kv_heads_);
    for (int item = begin; item < end; ++item) {
        const int r = item / n_kv_heads_, head = item % n_kv_heads_;
        const Row& row = batch_->rows[r];
        const size_t angle = static_cast<size_t>(row.position) * head_size_;
        float* k =
            qkv_rows_.data() + static_cast<size_t>(r) * qkv_ + (n_heads_ + head) * head_size_;
        const float* v = k + n_kv_heads_ * head_size_;
        kernels_.rope(k, cos_.data() + angle, sin_.data() + angle, head_size_);
        const int block = batch_->block_tables[row.sequence][row.position / kBlockTokens];
        kv_.store(layer, head, block, row.position % kBlockTokens, k, v);
    }
}

void CpuTransformer::attend(Team& team, int layer) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()) * n_heads_);
    Attention a;
    a.block_stride = kv_.block_bytes();
    a.head_size = head_size_;
    a.scale = 1.0f / std::sqrt(static_cast<float>(head_size_));
    a.scores = scores_[team.rank()].data();
    for (int item = begin; item < end; ++item) {
        const int r = item / n_heads_, head = item % n_heads_;
        const Row& row = batch_->rows[r];
        const size_t angle = static_cast<size_t>(row.position) * head_size_;
        float* q = qkv_rows_.data() + static_cast<size_t>(r) * qkv_ + head * head_size_;
        kernels_.rope(q, cos_.data() + angle, sin_.data() + angle, head_size_);
        const int kv_head = head / (n_heads_ / n_kv_heads_);
        a.q = q;
        a.k_base = kv_.keys(layer, kv_head);
        a.v_base = kv_.values(layer, kv_head);
        a.block_table = batch_->block_tables[row.sequence];
        a.n_tokens = row.position + 1;
        a.out = attended_.data() + static_cast<size_t>(r) * dim_ + head * head_size_;
        kernels_.attend_f32(a);
    }
}

// x += down (silu(gate (norm(x))) * up (norm(x)))
void CpuTransformer::feed_forward(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = static_cast<int>(batch_->rows.size());
    norm(team, w.ffn_norm);
    // A thread's share is whole pairs of panels, so it can gate its own outputs at once.
    const auto [begin, end] = team.share(w.gate_up.panels / 2);
    kernels_.matmul_f32(w.gate_up.data + static_cast<size_t>(2 * begin) * w.gate_up.k * kLanes,
                        w.gate_up.k, 2 * (end - begin), normed_.data(), dim_, rows,
                        gate_up_.data() + 2 * begin * kLanes, 2 * hidden_, false);
    for (int r = 0; r < rows; ++r) {
        kernels_.swiglu(gate_up_.data() + static_cast<size_t>(r) * 2 * hidden_ + 2 * begin * kLanes,
                        end - begin,
                        gated_.data() + static_cast<size_t>(r) * hidden_ + begin * kLanes);
    }
    team.barrier();
    multiply(team, w.down, gated_.data(), hidden_, rows, x_.data(), dim_, true);
}

// logits = output (norm(x)) for the rows that want them
void CpuTransformer::classify(Team& team) {
    const int rows = static_cast<int>(batch_->logit_rows.size());
    if (rows == 0) return;
    const auto [begin, end] = team.share(rows);
    for (int i = begin; i < end; ++i) {
        const size_t r = batch_->logit_rows[i];
        kernels_.rmsnorm(x_.data() + r * dim_, weights_->final_norm(), config().dim,
                         config().norm_eps, normed_.data() + static_cast<size_t>(i) * dim_);
    }
    team.barrier();
    multiply(team, weights_->output(), normed_.data(), dim_, rows, logits_.data(), logits_stride_,
             false);
}

// cos and sin of position / theta^(2i / head_size) in the layout of KernelTable::rope, computed in
// double: every CPU gets the same tables.
void CpuTransformer::fill_rotary_tables(int positions) {
    for (; rotary_filled_ < positions; ++rotary_filled_) {
        const size_t start = static_cast<size_t>(rotary_filled_) * head_size_;
        for (int i = 0; i < head_size_; i += 2) {
            const double frequency = std::pow(static_cast<double>(config().rope_theta),
                                              -i / static_cast<double>(head_size_));
            const double angle = rotary_filled_ * frequency;
            const float c = static_cast<float>(std::cos(angle));
            const float s = static_cast<float>(std::sin(angle));
            cos_[start + i] = cos_[start + i + 1] = c;
            sin_[start + i] = -s;
            sin_[start + i + 1] = s;
        }
    }
}

// A second thread costs a few microseconds of barriers per layer; a layer must be worth more.
int CpuTransformer::useful_threads(int rows) const {
    const Matrix* matrices[] = {&weights_->layer(0).qkv, &weights_->layer(0).wo,
                                &weights_->layer(0).gate_up, &weights_->layer(0).down};
    double work = 0;  // multiply-adds per layer
    for (const Matrix* m : matrices) work += static_cast<double>(m->panels) * kLanes * m->k;
    constexpr double kWorkPerThread = 150e3;
    return std::max(1, std::min(n_threads_, static_cast<int>(work * rows / kWorkPerThread)));
}

}  // namespace pyllama2c
