// Llama (Touvron et al. 2023) as llama2.c runs it: RMSNorm (Zhang and Sennrich 2019), rotary
// positions (Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
//
// One parallel region per pass. Each step below is shared out to the threads by rows, heads or
// output panels, and ends in a barrier unless the next one reads only what its own thread wrote.
// Whoever is done early takes over panels, except of queries, keys and values.
#include "backends/cpu/transformer.h"

#include <algorithm>
#include <cmath>

namespace pyllama2c {

namespace {

constexpr int kLeastPanels = 4;         // worth taking over
constexpr size_t kNearCache = 2 << 20;  // bytes: about what a core has to itself

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
      far_(weights_->nbytes() > kNearCache),
      q_stride_(std::max(dim_, hidden_)),
      q_groups_(most_groups(*weights_)),
      rotary_(config().rope_theta, head_size_, config().max_seq_len),
      scores_(n_threads),
      q8_(n_threads) {
    const size_t rows = std::max(max_rows, n_threads);  // see share_rows()
    x_ = Buffer<float>(rows * dim_);
    normed_ = Buffer<float>(rows * dim_);
    qkv_rows_ = Buffer<float>(rows * qkv_);
    attended_ = Buffer<float>(rows * dim_);
    gate_up_ = Buffer<float>(rows * 2 * hidden_);
    gated_ = Buffer<float>(rows * hidden_);
    logits_ = Buffer<float>(rows * logits_stride_);
    if (q_groups_ > 0) {
        q_ = Buffer<int8_t>(rows * q_stride_);
        q_scales_ = Buffer<float>(rows * q_groups_);
        q_sums_ = Buffer<int32_t>(rows * q_groups_);
    }
    for (Buffer<float>& scores : scores_) {
        scores = Buffer<float>(kQueriesAtOnce * static_cast<size_t>(padded(config().max_seq_len)));
    }
    for (Buffer<int8_t>& q8 : q8_) q8 = Buffer<int8_t>(kQueriesAtOnce * padded(head_size_));
    places_.reserve(max_rows);
}

void CpuTransformer::begin(const Batch& batch) {
    batch_ = &batch;
    layer_ = 0;
    int last = 0;
    for (const Row& row : batch.rows) last = std::max(last, row.position);
    rotary_.fill(last + 1);
    places_.assign(batch.rows.size(), -1);
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
        places_[batch.logit_rows[i]] = static_cast<int>(i);
    }
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
    if (layer == n_layers) team.barrier(weights_->output().panels);  // a pass that goes on there
    while (layer < n_layers) {
        attention(team, layer);
        feed_forward(team, layer);
        ++layer;
        if (team.rank() == 0) {
            layer_ = layer;
            if (deadline != Clock::time_point::max()) out_of_time_ = Clock::now() >= deadline;
        }
        team.barrier(layer == n_layers ? weights_->output().panels : 0,
                     if_far(first_weights(team, layer)));
        if (out_of_time_) return;
    }
    classify(team);
}

void CpuTransformer::embed(Team& team) {
    const auto [begin, end] = team.share(static_cast<int>(batch_->rows.size()));
    for (int r = begin; r < end; ++r) {
        weights_->embed(batch_->rows[r].token, x_.data() + static_cast<size_t>(r) * dim_);
    }
    team.barrier();
}

// Which rows this thread prepares for a product. A lone row every thread prepares for itself, in
// row `rank` of the buffers: that takes less time than a barrier.
CpuTransformer::Share CpuTransformer::share_rows(const Team& team, int rows) {
    if (rows == 1) return {0, 1, team.rank()};
    const auto [begin, end] = team.share(rows);
    return {begin, end, 0};
}

// normed = rmsnorm(x) as the input of `next`
CpuTransformer::Input CpuTransformer::norm(Team& team, int rows, const float* weight,
                                           const Matrix& next) {
    const Share share = share_rows(team, rows);
    float* normed = normed_.data() + static_cast<size_t>(share.copy) * dim_;
    for (int r = share.begin; r < share.end; ++r) {
        kernels_.rmsnorm(x_.data() + static_cast<size_t>(r) * dim_, weight, config().dim,
                         config().norm_eps, normed + static_cast<size_t>(r) * dim_);
    }
    const Input input = quantize(share, next, normed, dim_);
    if (rows > 1) team.barrier();
    return input;
}

// x [rows][stride] as the input of w: in int8 where w wants that.
CpuTransformer::Input CpuTransformer::input(Team& team, int rows, const Matrix& w, const float* x,
                                            size_t stride) {
    const Share share = share_rows(team, rows);
    const Input input = quantize(share, w, x, stride);
    if (rows > 1 && w.quantized()) team.barrier();
    return input;
}

CpuTransformer::Input CpuTransformer::quantize(const Share& share, const Matrix& w, const float* x,
                                               size_t stride) {
    if (!w.quantized()) return {x, stride, nullptr, nullptr, nullptr};
    const size_t groups = w.groups();
    int8_t* q = q_.data() + static_cast<size_t>(share.copy) * q_stride_;
    float* scales = q_scales_.data() + share.copy * groups;
    int32_t* sums = q_sums_.data() + share.copy * groups;
    for (size_t r = share.begin; r < static_cast<size_t>(share.end); ++r) {
        kernels_.quantize(x + r * stride, w.k, w.group, q + r * q_stride_, scales + r * groups,
                          sums + r * groups);
    }
    return {nullptr, static_cast<size_t>(q_stride_), q, scales, sums};
}

// y (+)= W x: the given panels of it, for all rows. `next`: the weights to be read after w.
void CpuTransformer::multiply(Items panels, const Matrix& w, const Input& input, int rows, float* y,
                              size_t y_stride, bool accumulate, const char* next) const {
    Matmul m{};
    m.w = weights_at(w, panels.begin);
    m.w_next = panels.more ? weights_at(w, panels.end) : next;
    m.far = far_;
    m.w_scales = w.scales + panels.begin * w.panel_scale_bytes();
    m.w_scale_step = w.group_scales ? kLanes : 0;
    m.k = w.k;
    m.panels = panels.end - panels.begin;
    m.group = w.group;
    m.x = input.x;
    m.q = input.q;
    m.x_stride = input.stride;
    m.q_scales = input.scales;
    m.q_sums = input.sums;
    m.rows = rows;
    m.y = y + static_cast<size_t>(panels.begin) * kLanes;
    m.y_stride = y_stride;
    m.accumulate = accumulate;
    switch (w.packing) {
        case Packing::kFloat32: return kernels_.matmul_f32(m);
        case Packing::kBFloat16: return kernels_.matmul_bf16(m);
        case Packing::kInt8: return kernels_.matmul_q8(m);
        case Packing::kInt4: return kernels_.matmul_q4(m);
    }
}

// How many rows go on once a layer has stored its keys and values. Nobody attends to the outputs of
// the last layer: there only those go on whose logits are wanted, moved together.
int CpuTransformer::rows_kept(int layer) const {
    return static_cast<int>(is_last(layer) ? batch_->logit_rows.size() : batch_->rows.size());
}

// Moves them together in the residual stream, in the columns of some panels.
void CpuTransformer::keep_rows(Items panels) {
    const size_t first = static_cast<size_t>(panels.begin) * kLanes;
    const size_t n = static_cast<size_t>(panels.end) * kLanes - first;
    for (size_t i = 0; i < batch_->logit_rows.size(); ++i) {
        const size_t from = batch_->logit_rows[i];
        if (from != i)
            std::copy_n(&x_.data()[from * dim_ + first], n, &x_.data()[i * dim_ + first]);
    }
}

// x += wo (attention(rope(q), rope(k), v)) with q, k, v = qkv (norm(x)); then x holds the kept rows
void CpuTransformer::attention(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = static_cast<int>(batch_->rows.size()), kept = rows_kept(layer);
    const Input normed = norm(team, rows, w.attention_norm, w.qkv);
    const char* next = weights_at(w.wo, team.share(w.wo.panels).first);
    const auto multiply_panels = [&](int begin, int end, const char* after) {
        multiply({begin, end, false}, w.qkv, normed, rows, qkv_rows_.data(), qkv_, false, after);
    };
    // No queries where no row goes on.
    if (has_own_heads(team)) {
        const int n = head_size_ / kLanes;  // panels of a head
        const auto [q, q_end] = team.share(n_heads_);
        const auto [k, k_end] = team.share(n_kv_heads_);
        const int keys = n_heads_ + k, values = keys + n_kv_heads_, n_own = k_end - k;
        if (kept > 0) multiply_panels(n * q, n * q_end, weights_at(w.qkv, n * keys));
        multiply_panels(n * keys, n * (keys + n_own), weights_at(w.qkv, n * values));
        multiply_panels(n * values, n * (values + n_own), next);
    } else {
        const auto [begin, end] = team.share(w.qkv.panels);
        multiply_panels(begin, end, next);
        team.barrier();
    }
    attend(team, layer);
    team.barrier(w.wo.panels, if_far(next));
    if (kept == 0) return;
    const Input attended = input(team, kept, w.wo, attended_.data(), dim_);
    next = weights_at(w.gate_up, 2 * team.share(w.gate_up.panels / 2).first);
    for (Items panels; team.take(kLeastPanels, panels);) {
        if (kept < rows) keep_rows(panels);
        multiply(panels, w.wo, attended, kept, x_.data(), dim_, true, next);
    }
    team.barrier(w.gate_up.panels / 2, if_far(next));
}

// Where heads are whole panels and every thread has as many of them, a thread (perhaps the only
// one) makes the queries, keys and values of its own heads and attends without waiting for the
// others.
bool CpuTransformer::has_own_heads(const Team& team) const {
    return head_size_ % kLanes == 0 && n_kv_heads_ % team.size() == 0;
}

// Where this thread begins in a layer, if rows go on there, or behind the last in the classifier.
const char* CpuTransformer::first_weights(const Team& team, int layer) const {
    const bool classifier = layer == config().n_layers;
    const Matrix& w = classifier ? weights_->output() : weights_->layer(layer).qkv;
    if (classifier || !has_own_heads(team)) return weights_at(w, team.share(w.panels).first);
    return weights_at(w, head_size_ / kLanes * team.share(n_heads_).first);
}

void CpuTransformer::store_keys_and_values(Team& team, int layer) {
    const int rows = static_cast<int>(batch_->rows.size());
    const auto [begin, end] = team.share(n_kv_heads_ * rows);
    for (int item = begin; item < end; ++item) {
        store_key_and_value(layer, item / rows, item % rows);
    }
}

void CpuTransformer::store_key_and_value(int layer, int head, int r) {
    const Row& row = batch_->rows[r];
    float* k = qkv_rows_.data() + static_cast<size_t>(r) * qkv_ + (n_heads_ + head) * head_size_;
    const float* v = k + n_kv_heads_ * head_size_;
    kernels_.rope(k, rotary_.cos(row.position), rotary_.sin(row.position), head_size_);
    const int block = batch_->block_tables[row.sequence][row.position / kBlockTokens];
    const int slot = row.position % kBlockTokens;
    const size_t offset = block * kv_.block_bytes();
    const int type = static_cast<int>(kv_.type());
    kernels_.store_key[type](k, head_size_, slot, kv_.keys(layer, head) + offset);
    kernels_.store_value[type](v, head_size_, slot, kv_.values(layer, head) + offset);
}

// Heads first, then rows: what sequences share of the keys and values of a head stays in the cache.
void CpuTransformer::attend(Team& team, int layer) {
    const int rows = static_cast<int>(batch_->rows.size());
    // Where a thread has whole heads of keys and values, those of rows that attend together are
    // stored just before, when their block has been prefetched: a sequence's positions follow each
    // other (backend.h), and no row looks at what is stored behind its own.
    const bool whole_heads = n_kv_heads_ % team.size() == 0;
    if (!whole_heads) {
        store_keys_and_values(team, layer);
        team.barrier();
    }
    // With few rows every head by itself, so that all threads have something to do.
    const int n = whole_heads || rows >= 4 * team.size() ? n_heads_ / n_kv_heads_ : 1;
    const auto [begin, end] = team.share(n_heads_ / n * rows);
    for (int item = begin; item < end;) {
        const int head = item / rows, row = item % rows;
        const int n_rows = std::min(rows_together(layer, row), end - item);
        for (int i = 0; whole_heads && i < n_rows; ++i) store_key_and_value(layer, head, row + i);
        item += n_rows;
        if (place(layer, row) < 0) continue;
        const int next = std::min(item, end - 1);
        attend(team, layer, {head * n, n, row, n_rows}, {next / rows * n, n, next % rows, 1});
    }
}

// How many rows from this one on can be attended to together: one sequence's, in the same block of
// the cache, either all kept or none.
int CpuTransformer::rows_together(int layer, int row) const {
    const Row* first = &batch_->rows[row];
    const int most = std::min(static_cast<int>(batch_->rows.size()) - row,
                              kBlockTokens - first->position % kBlockTokens);
    int n = 1;
    while (n < most && first[n].sequence == first->sequence &&
           (place(layer, row + n) < 0) == (place(layer, row) < 0)) {
        ++n;
    }
    return n;
}

// Some heads of some rows; `next` is what this thread will attend to after them.
void CpuTransformer::attend(const Team& team, int layer, Queries now, Queries next) {
    const Row& row = batch_->rows[now.row];
    const Row& next_row = batch_->rows[next.row];
    const int heads_per_kv = n_heads_ / n_kv_heads_;
    const int kv_head = now.first / heads_per_kv, next_kv_head = next.first / heads_per_kv;
    float* q = qkv_rows_.data() + static_cast<size_t>(now.row) * qkv_ + now.first * head_size_;
    for (int r = 0; r < now.n_rows; ++r) {
        const int position = row.position + r;
        for (int i = 0; i < now.n; ++i) {
            kernels_.rope(q + r * qkv_ + i * head_size_, rotary_.cos(position),
                          rotary_.sin(position), head_size_);
        }
    }
    Attention a{};
    a.q = q;
    a.q_stride = qkv_;
    a.n_rows = now.n_rows;
    a.n_heads = now.n;
    a.k_base = kv_.keys(layer, kv_head);
    a.v_base = kv_.values(layer, kv_head);
    a.block_table = batch_->block_tables[row.sequence];
    a.block_stride = kv_.block_bytes();
    if (far_ && (kv_head != next_kv_head || row.sequence != next_row.sequence)) {
        a.k_next = kv_.keys(layer, next_kv_head);
        a.v_next = kv_.values(layer, next_kv_head);
        a.next_table = batch_->block_tables[next_row.sequence];
        a.next_blocks = next_row.position / kBlockTokens + 1;
    }
    a.n_tokens = row.position + 1;
    a.head_size = head_size_;
    a.scale = 1.0f / std::sqrt(static_cast<float>(head_size_));
    a.scores = scores_[team.rank()].data();
    a.q8 = q8_[team.rank()].data();
    const size_t out_row = place(layer, now.row);
    a.out = attended_.data() + out_row * dim_ + now.first * head_size_;
    a.out_stride = dim_;
    kernels_.attend[static_cast<int>(kv_.type())](a);
}

// x += down (silu(gate (norm(x))) * up (norm(x)))
void CpuTransformer::feed_forward(Team& team, int layer) {
    const LayerWeights& w = weights_->layer(layer);
    const int rows = rows_kept(layer);
    if (rows == 0) return;
    const Input normed = norm(team, rows, w.ffn_norm, w.gate_up);
    const char* next = weights_at(w.down, team.share(w.down.panels).first);
    // Whole pairs of gates and ups, so that a thread can gate its own outputs.
    for (Items pairs; team.take(kLeastPanels / 2, pairs);) {
        multiply({2 * pairs.begin, 2 * pairs.end, pairs.more}, w.gate_up, normed, rows,
                 gate_up_.data(), 2 * hidden_, false, next);
        for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
            kernels_.swiglu(gate_up_.data() + r * 2 * hidden_ + 2 * pairs.begin * kLanes,
                            pairs.end - pairs.begin,
                            gated_.data() + r * hidden_ + pairs.begin * kLanes);
        }
    }
    team.barrier(w.down.panels, if_far(next));
    const Input gated = input(team, rows, w.down, gated_.data(), hidden_);
    next = first_weights(team, layer + 1);
    for (Items panels; team.take(kLeastPanels, panels);) {
        multiply(panels, w.down, gated, rows, x_.data(), dim_, true, next);
    }
}

// logits = output (norm(x)) for the rows that the last layer kept
void CpuTransformer::classify(Team& team) {
    const int rows = static_cast<int>(batch_->logit_rows.size());
    if (rows == 0) return;
    const Matrix& w = weights_->output();
    const Input normed = norm(team, rows, weights_->final_norm(), w);
    for (Items panels; team.take(kLeastPanels, panels);) {
        multiply(panels, w, normed, rows, logits_.data(), logits_stride_, false, w.data);
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
