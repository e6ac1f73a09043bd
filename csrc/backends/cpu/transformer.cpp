// Llama (Touvron et al. 2023) as llama2.c runs it: RMSNorm (Zhang and Sennrich 2019), rotary
// positions (Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
//
// One parallel region per pass. Each step below is shared out to the threads by rows, heads or
// output panels, and ends in a barrier.
#include "backends/cpu/transformer.h"

#include <algorithm>
#include <cmath>

namespace pyllama2c {

namespace {

int most_groups(const Weights& weights) {
    int most = weights.output().groups();
    for (int i = 0; i < weights.config().n_layers; ++i) {
        const LayerWeights& layer = weights.layer(i);
        for (const Matrix* m : {&layer.qkv, &layer.wo, &layer.gate_up, &layer.down}) {
            most = std::max(most, m->groups());
        }
    }
    return most;
}

}  // namespace

CpuTransformer::CpuTransformer(std::shared_ptr<const Weights> weights, KvType kv_type,
                               int n_threads, int max_rows, int n_blocks)
    : weights_(std::move(weights)),
      kernels_(kernels()),
      n_threads_(n_threads),
      max_rows_(max_rows),
      kv_(config(), kv_type, n_blocks),
      head_size_(config().head_size()),
      n_heads_(config().n_heads),
      n_kv_heads_(config().n_kv_heads),
      dim_(padded(config().dim)),
      qkv_(padded(config().dim + 2 * config().kv_dim())),
      hidden_(padded(config().hidden_dim)),
      logits_stride_(padded(config().vocab_size)),
      q_stride_(std::max(dim_, hidden_)),
      q_groups_(most_groups(*weights_)),
      rotary_(config().rope_theta, head_size_, config().max_seq_len),
      scores_(n_threads) {
    const size_t rows = max_rows;
    x_ = Buffer<float>(rows * dim_);
    normed_ = Buffer<float>(rows * dim_);
    qkv_rows_ = Buffer<float>(rows * qkv_ + kLanes);  // the last head may be read beyond its end
    attended_ = Buffer<float>(rows * dim_);
    gate_up_ = Buffer<float>(rows * 2 * hidden_);
    gated_ = Buffer<float>(rows * hidden_);
    logits_ = Buffer<float>(rows * logits_stride_);
    if (q_groups_ > 0) {
        q_ = Buffer<int8_t>(rows * q_stride_);
        q_scales_ = Buffer<float>(rows * q_groups_);
        q_sums_ = Buffer<int32_t>(rows * q_groups_);
    }
    for (Buffer<float>& scores : scores_) scores = Buffer<float>(padded(config().max_seq_len));
}

void CpuTransformer::begin(const Batch& batch) {
    batch_ = &batch;
    layer_ = 0;
    int last = 0;
    for (const Row& row : batch.rows) last = std::max(last, row.position);
    rotary_.fill(last + 1);
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

// normed = rmsnorm(x), ready for `next`
void CpuTransformer::norm(Team& team, const float* weight, const Matrix& next) {
    const auto rows = team.share(static_cast<int>(batch_->rows.size()));
    for (int r = rows.first; r < rows.second; ++r) {
        kernels_.rmsnorm(x_.data() + static_cast<size_t>(r) * dim_, weight, config().dim,
                         config().norm_eps, normed_.data() + static_cast<size_t>(r) * dim_);
    }
    quantize(rows, next, normed_.data(), dim_);
    team.barrier();
}

// q = x in int8, for the given rows, if w wants that
void CpuTransformer::quantize(std::pair<int, int> rows, const Matrix& w, const float* x,
                              size_t x_stride) {
    if (!w.quantized()) return;
    for (size_t r = rows.first; r < static_cast<size_t>(rows.second); ++r) {
        kernels_.quantize(x + r * x_stride, w.k, w.group, q_.data() + r * q_stride_,
                          q_scales_.data() + r * w.groups(), q_sums_.data() + r * w.groups());
    }
}

// y (+)= W x: the given panels of it, for all rows. Quantized weights take x from q.
void CpuTransformer::multiply(std::pair<int, int> panels, const Matrix& w, const float* x,
                              size_t x_stride, int rows, float* y, size_t y_stride,
                              bool accumulate) const {
    Matmul m{};
    m.w = w.data + panels.first * w.panel_bytes();
    m.w_scales = w.scales + panels.first * w.panel_scale_bytes();
    m.w_scale_step = w.group_scales ? kLanes : 0;
    m.k = w.k;
    m.panels = panels.second - panels.first;
    m.group = w.group;
    m.x = x;
    m.q = q_.data();
    m.x_stride = w.quantized() ? q_stride_ : x_stride;
    m.q_scales = q_scales_.data();
    m.q_sums = q_sums_.data();
    m.rows = rows;
    m.y = y + static_cast<size_t>(panels.first) * kLanes;
    m.y_stride = y_stride;
    m.accumulate = accumulate;
    switch (w.packing) {
        case Packing::kFloat32: return kernels_.matmul_f32(m);
        case Packing::kBFloat16: return kernels_.matmul_bf16(m);
        case Packing::kInt8: return kernels_.matmul_q8(m);
        case Packing::kInt4: return kernels_.matmul_q4(m);
    }
}

// x += wo (attention(rope(q), rope(k), v)) with q, k, v = qkv (norm(x))
void CpuTransformer::attention(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = static_cast<int>(batch_->rows.size());
    norm(team, w.attention_norm, w.qkv);
    multiply(team.share(w.qkv.panels), w.qkv, normed_.data(), dim_, rows, qkv_rows_.data(), qkv_,
             false);
    team.barrier();
    store_keys_and_values(team, layer);
    team.barrier();
    attend(team, layer);
    team.barrier();
    if (w.wo.quantized()) {
        quantize(team.share(rows), w.wo, attended_.data(), dim_);
        team.barrier();
    }
    multiply(team.share(w.wo.panels), w.wo, attended_.data(), dim_, rows, x_.data(), dim_, true);
    team.barrier();
}

void CpuTransformer::store_keys_and_values(Team& team, int layer) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()) * n_kv_heads_);
    for (int item = begin; item < end; ++item) {
        const int r = item / n_kv_heads_, head = item % n_kv_heads_;
        const Row& row = batch_->rows[r];
        float* k =
            qkv_rows_.data() + static_cast<size_t>(r) * qkv_ + (n_heads_ + head) * head_size_;
        const float* v = k + n_kv_heads_ * head_size_;
        kernels_.rope(k, rotary_.cos(row.position), rotary_.sin(row.position), head_size_);
        const int block = batch_->block_tables[row.sequence][row.position / kBlockTokens];
        const int slot = row.position % kBlockTokens;
        const size_t offset = block * kv_.block_bytes();
        const int type = static_cast<int>(kv_.type());
        kernels_.store_key[type](k, head_size_, slot, kv_.keys(layer, head) + offset);
        kernels_.store_value[type](v, head_size_, slot, kv_.values(layer, head) + offset);
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
        float* q = qkv_rows_.data() + static_cast<size_t>(r) * qkv_ + head * head_size_;
        kernels_.rope(q, rotary_.cos(row.position), rotary_.sin(row.position), head_size_);
        const int kv_head = head / (n_heads_ / n_kv_heads_);
        a.q = q;
        a.k_base = kv_.keys(layer, kv_head);
        a.v_base = kv_.values(layer, kv_head);
        a.block_table = batch_->block_tables[row.sequence];
        a.n_tokens = row.position + 1;
        a.out = attended_.data() + static_cast<size_t>(r) * dim_ + head * head_size_;
        kernels_.attend[static_cast<int>(kv_.type())](a);
    }
}

// x += down (silu(gate (norm(x))) * up (norm(x)))
void CpuTransformer::feed_forward(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = static_cast<int>(batch_->rows.size());
    norm(team, w.ffn_norm, w.gate_up);
    // A thread's share is whole pairs of panels, so it can gate its own outputs at once.
    const auto [begin, end] = team.share(w.gate_up.panels / 2);
    multiply({2 * begin, 2 * end}, w.gate_up, normed_.data(), dim_, rows, gate_up_.data(),
             2 * hidden_, false);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        kernels_.swiglu(gate_up_.data() + r * 2 * hidden_ + 2 * begin * kLanes, end - begin,
                        gated_.data() + r * hidden_ + begin * kLanes);
    }
    team.barrier();
    if (w.down.quantized()) {
        quantize(team.share(rows), w.down, gated_.data(), hidden_);
        team.barrier();
    }
    multiply(team.share(w.down.panels), w.down, gated_.data(), hidden_, rows, x_.data(), dim_,
             true);
}

// logits = output (norm(x)) for the rows that want them
void CpuTransformer::classify(Team& team) {
    const int rows = static_cast<int>(batch_->logit_rows.size());
    if (rows == 0) return;
    const Matrix& w = weights_->output();
    const auto share = team.share(rows);
    for (int i = share.first; i < share.second; ++i) {
        const size_t r = batch_->logit_rows[i];
        kernels_.rmsnorm(x_.data() + r * dim_, weights_->final_norm(), config().dim,
                         config().norm_eps, normed_.data() + static_cast<size_t>(i) * dim_);
    }
    quantize(share, w, normed_.data(), dim_);
    team.barrier();
    multiply(team.share(w.panels), w, normed_.data(), dim_, rows, logits_.data(), logits_stride_,
             false);
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
