// Attention over a KV cache of floats; see vector_kernels.h, behind which vector_table.h
// includes this file.

struct KvF32 {
    using Element = float;
    static inline Vec load_16(const Element* p) { return load(p); }
    static inline void store_16(Vec v, Element* p) { store(p, v); }
};

struct KvF16 {
    using Element = uint16_t;
    static inline Vec load_16(const Element* p) { return load_half(p); }
    // What is too large becomes the largest there is; an infinity becomes a NaN.
    static inline void store_16(Vec v, Element* p) {
        const Vec most = set1(kLargestHalf);
        store_half(p, fma(v, zero(), max(min(v, most), sub(zero(), most))));
    }
};

template <typename Kv>
inline const typename Kv::Element* kv_elements(const char* block) {
    return reinterpret_cast<const typename Kv::Element*>(block);
}

inline void store_part(float* y, int d, int n, Vec v) {
    if (d + kLanes <= n) return store(y + d, v);
    float last[kLanes];
    store(last, v);
    for (int i = 0; d + i < n; ++i) y[d + i] = last[i];
}

template <typename Kv>
void store_key(const float* k, int head_size, int slot, char* keys) {
    typename Kv::Element* to = reinterpret_cast<typename Kv::Element*>(keys) + slot;
    for (int d = 0; d < head_size; d += kLanes) {
        typename Kv::Element part[kLanes];
        Kv::store_16(load_part(k, d, head_size), part);
        for (int i = 0; i < kLanes && d + i < head_size; ++i) to[(d + i) * kBlockTokens] = part[i];
    }
}

template <typename Kv>
void store_value(const float* v, int head_size, int slot, char* values) {
    typename Kv::Element* to = reinterpret_cast<typename Kv::Element*>(values);
    if (narrow_values(head_size)) {
        constexpr int kHalf = kLanes / 2;
        typename Kv::Element part[kLanes];
        Kv::store_16(load_low(v, head_size), part);
        __builtin_memcpy(to + slot * kHalf, part, kHalf * sizeof *part);
        return;
    }
    to += slot * kLanes;
    for (int d = 0; d < head_size; d += kLanes) {
        Kv::store_16(load_part(v, d, head_size), to + d * kBlockTokens);
    }
}

inline const char* kv_block(const Attention& a, const char* base, int block) {
    return base + a.block_table[block] * a.block_stride;
}

// The block to be prefetched while one is read: as far into what comes next, or its last.
inline const char* kv_block_ahead(const Attention& a, const char* base, int block) {
    const int last = a.next_blocks - 1;
    return base + a.next_table[block < last ? block : last] * a.block_stride;
}

// Q of the queries, which are computed together: keys and values are read once for all of them.
template <int Q>
struct Queries {
    Queries(const Attention& a, int row, int head) {
        const int n_scores = padded(a.n_tokens);
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
            q[i] = a.q + row * a.q_stride + head * a.head_size;
            out[i] = a.out + row * a.out_stride + head * a.head_size;
            scores[i] = a.scores + i * n_scores;
            n_tokens[i] = a.n_tokens + row;
            if (++head == a.n_heads) {
                head = 0;
                ++row;
            }
        }
    }
    // Scores become weights, but for the scale.
    inline void make_weights() {
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) scale[i] = 1.0f / exp_and_sum(scores[i], n_tokens[i]);
    }
    const float* q[Q];
    float* scores[Q];
    float* out[Q];
    int n_tokens[Q];  // that each attends to, all ending in the same block
    float scale[Q];   // 1 / the sum of the weights
};

inline int n_blocks(const Attention& a) { return (a.n_tokens + kBlockTokens - 1) / kBlockTokens; }

// Scores of B blocks of 16 keys: a block is a panel whose outputs are tokens.
template <typename Kv, bool Ahead, int Q, int B>
inline void score_blocks(const Attention& a, const Queries<Q>& queries, int block) {
    const typename Kv::Element *keys[B], *ahead[B];
    Vec dots[Q][B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_elements<Kv>(kv_block(a, a.k_base, block + b));
        if constexpr (Ahead) ahead[b] = kv_elements<Kv>(kv_block_ahead(a, a.k_next, block + b));
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) dots[i][b] = zero();
    }
    for (int d = 0; d < a.head_size; ++d) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            const Vec key = Kv::load_16(keys[b] + d * kLanes);
            if constexpr (Ahead) __builtin_prefetch(ahead[b] + d * kLanes, 0, kL2);
#pragma GCC unroll 4
            for (int i = 0; i < Q; ++i) dots[i][b] = fma(set1(queries.q[i][d]), key, dots[i][b]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            store(queries.scores[i] + (block + b) * kBlockTokens, mul(dots[i][b], set1(a.scale)));
        }
    }
}

// Up to B blocks at once.
template <typename Kv, bool Ahead, int Q, int B>
inline void score_last_blocks(const Attention& a, const Queries<Q>& queries, int block, int left) {
    if constexpr (B > 0) {
        if (left == B) {
            score_blocks<Kv, Ahead, Q, B>(a, queries, block);
        } else {
            score_last_blocks<Kv, Ahead, Q, B - 1>(a, queries, block, left);
        }
    }
}

// Adds the values of a block, all or those of each query's first `counts` tokens, to four chains.
// What the block holds past a query's last token may be anything: that is skipped, not multiplied
// by its weight, an exact 0.
template <typename Kv, bool Ahead, bool Whole, int Q, int P>
inline void add_values(const typename Kv::Element* values, const typename Kv::Element* ahead,
                       const float* const (&weights)[Q], const int (&counts)[Q],
                       Vec (&chains)[Q][P][4]) {
    const int most = Whole ? kBlockTokens : counts[Q - 1];
    for (int t = 0; t < most; t += 4) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            if (!Whole && t + c >= most) break;
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int place = (p * kBlockTokens + t + c) * kLanes;
                const Vec value = Kv::load_16(values + place);
                if constexpr (Ahead) __builtin_prefetch(ahead + place, 0, kL2);
#pragma GCC unroll 4
                for (int i = 0; i < Q; ++i) {
                    if (!Whole && t + c >= counts[i]) continue;
                    chains[i][p][c] = fma(set1(weights[i][t + c]), value, chains[i][p][c]);
                }
            }
        }
    }
}

// P panels of 16 output dimensions from panel `panel` on.
template <typename Kv, bool Ahead, int Q, int P>
inline void sum_values(const Attention& a, const Queries<Q>& queries, int panel) {
    Vec chains[Q][P][4];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) chains[i][p][c] = zero();
        }
    }
    const int offset = panel * kBlockTokens * kLanes, last = n_blocks(a) - 1;
    for (int block = 0; block <= last; ++block) {
        const typename Kv::Element* values = kv_elements<Kv>(kv_block(a, a.v_base, block)) + offset;
        const typename Kv::Element* ahead = values;
        if constexpr (Ahead) ahead = kv_elements<Kv>(kv_block_ahead(a, a.v_next, block)) + offset;
        const float* weights[Q];
        int counts[Q];
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
            weights[i] = queries.scores[i] + block * kBlockTokens;
            counts[i] = queries.n_tokens[i] - block * kBlockTokens;
        }
        if (block < last) {
            add_values<Kv, Ahead, true, Q, P>(values, ahead, weights, counts, chains);
        } else {
            add_values<Kv, Ahead, false, Q, P>(values, ahead, weights, counts, chains);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const Vec total =
                add(add(chains[i][p][0], chains[i][p][1]), add(chains[i][p][2], chains[i][p][3]));
            store_part(queries.out[i], (panel + p) * kLanes, a.head_size,
                       mul(total, set1(queries.scale[i])));
        }
    }
}

// Values of up to 8 dimensions stand in pairs, and so do their chains: of tokens 0 and 1, 2 and 3.
// The queries are those of one row. Models with such heads are too small for prefetching to matter.
template <typename Kv, int Q>
inline void sum_narrow_values(const Attention& a, const Queries<Q>& queries) {
    constexpr int kHalf = kLanes / 2;
    Vec chains[Q][2];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) chains[i][0] = chains[i][1] = zero();
    for (int first = 0; first < queries.n_tokens[0]; first += kBlockTokens) {
        const typename Kv::Element* values =
            kv_elements<Kv>(kv_block(a, a.v_base, first / kBlockTokens));
        const int left = queries.n_tokens[0] - first;
#pragma GCC unroll 8
        for (int t = 0; t < kBlockTokens; t += 2) {
            if (t >= left) break;
            const Vec pair = Kv::load_16(values + t * kHalf);
#pragma GCC unroll 4
            for (int i = 0; i < Q; ++i) {
                Vec& chain = chains[i][t / 2 % 2];
                const Vec sum = fma(set_halves(queries.scores[i] + first + t), pair, chain);
                // The last token's partner is skipped as in add_values().
                chain = t + 1 == left ? low_lanes(sum, kHalf, chain) : sum;
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
        const Vec low = add(chains[i][0], swap_halves(chains[i][0]));
        const Vec high = add(chains[i][1], swap_halves(chains[i][1]));
        store_part(queries.out[i], 0, a.head_size, mul(add(low, high), set1(queries.scale[i])));
    }
}

static_assert(kQueries <= kQueriesAtOnce && kValuePanels >= kQueries);

template <typename Kv>
struct FloatAttention {
    template <bool Ahead, int Q>
    static inline void run(const Attention& a, int row, int head) {
        Queries<Q> queries(a, row, head);
        const int blocks = n_blocks(a);
        int block = 0;
        for (; block + 4 <= blocks; block += 4) score_blocks<Kv, Ahead, Q, 4>(a, queries, block);
        score_last_blocks<Kv, Ahead, Q, 3>(a, queries, block, blocks - block);
        queries.make_weights();
        if (narrow_values(a.head_size)) return sum_narrow_values<Kv, Q>(a, queries);
        constexpr int kPanels = kValuePanels / Q;  // at a time, then what is left one by one
        const int panels = padded(a.head_size) / kLanes;
        int panel = 0;
        for (; panel + kPanels <= panels; panel += kPanels) {
            sum_values<Kv, Ahead, Q, kPanels>(a, queries, panel);
        }
        for (; panel < panels; ++panel) sum_values<Kv, Ahead, Q, 1>(a, queries, panel);
    }
};

// `left` queries from that one on, up to Q at a time.
template <typename Kind, int Q>
inline void attend_in_groups(const Attention& a, int row, int head, int left) {
    for (; left >= Q; left -= Q) {
        // The first to come asks for what comes next.
        if (row == 0 && head == 0 && a.next_blocks > 0) {
            Kind::template run<true, Q>(a, row, head);
        } else {
            Kind::template run<false, Q>(a, row, head);
        }
        for (head += Q; head >= a.n_heads; head -= a.n_heads) ++row;
    }
    if constexpr (Q > 1) attend_in_groups<Kind, Q / 2>(a, row, head, left);
}

template <typename Kv>
void attend(const Attention& a) {
    if (!narrow_values(a.head_size)) {
        return attend_in_groups<FloatAttention<Kv>, kQueries>(a, 0, 0, a.n_rows * a.n_heads);
    }
    for (int row = 0; row < a.n_rows; ++row) {
        attend_in_groups<FloatAttention<Kv>, kQueries>(a, row, 0, a.n_heads);
    }
}
