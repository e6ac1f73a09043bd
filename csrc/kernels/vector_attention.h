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
    static inline void store_16(Vec v, Element* p) { store_half(p, v); }
};

template <typename Kv>
inline const typename Kv::Element* kv_elements(const char* block) {
    return reinterpret_cast<const typename Kv::Element*>(block);
}

// Lanes d .. d + 15 of a vector of n, zero beyond its end.
inline Vec load_part(const float* x, int d, int n) {
    return d + kLanes <= n ? load(x + d) : load_low(x + d, n - d);
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
    typename Kv::Element* to = reinterpret_cast<typename Kv::Element*>(values) + slot * kLanes;
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

// Scores of B blocks of 16 keys: a block is a panel whose outputs are tokens.
template <typename Kv, bool Ahead, int B>
inline void score_blocks(const Attention& a, int block) {
    const typename Kv::Element *keys[B], *ahead[B];
    Vec dots[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_elements<Kv>(kv_block(a, a.k_base, block + b));
        if constexpr (Ahead) ahead[b] = kv_elements<Kv>(kv_block_ahead(a, a.k_next, block + b));
        dots[b] = zero();
    }
    for (int d = 0; d < a.head_size; ++d) {
        const Vec q = set1(a.q[d]);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            dots[b] = fma(q, Kv::load_16(keys[b] + d * kLanes), dots[b]);
            if constexpr (Ahead) __builtin_prefetch(ahead[b] + d * kLanes, 0, 2);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        store(a.scores + (block + b) * kBlockTokens, mul(dots[b], set1(a.scale)));
    }
}

// Adds the values of a block's first `count` tokens to four chains. What the block holds past the
// last token may be anything: those are skipped, not multiplied by their weight, an exact 0.
template <typename Kv, bool Ahead, int P>
inline void add_values(const typename Kv::Element* values, const typename Kv::Element* ahead,
                       const float* weights, int count, Vec (&chains)[P][4]) {
    for (int t = 0; t < count; t += 4) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            if (t + c >= count) break;
            const Vec weight = set1(weights[t + c]);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int place = (p * kBlockTokens + t + c) * kLanes;
                chains[p][c] = fma(weight, Kv::load_16(values + place), chains[p][c]);
                if constexpr (Ahead) __builtin_prefetch(ahead + place, 0, 2);
            }
        }
    }
}

// P panels of 16 output dimensions from panel `first` on.
template <typename Kv, bool Ahead, int P>
inline void sum_values(const Attention& a, int first, float scale) {
    Vec chains[P][4];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) chains[p][c] = zero();
    }
    const int offset = first * kBlockTokens * kLanes;
    for (int b = 0, left = a.n_tokens; left > 0; ++b, left -= kBlockTokens) {
        const typename Kv::Element* values = kv_elements<Kv>(kv_block(a, a.v_base, b)) + offset;
        const typename Kv::Element* ahead = values;
        if constexpr (Ahead) ahead = kv_elements<Kv>(kv_block_ahead(a, a.v_next, b)) + offset;
        const float* weights = a.scores + b * kBlockTokens;
        if (left >= kBlockTokens) {
            add_values<Kv, Ahead, P>(values, ahead, weights, kBlockTokens, chains);
        } else {
            add_values<Kv, Ahead, P>(values, ahead, weights, left, chains);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
        const Vec total = add(add(chains[p][0], chains[p][1]), add(chains[p][2], chains[p][3]));
        store_part(a.out, (first + p) * kLanes, a.head_size, mul(total, set1(scale)));
    }
}

template <typename Kv, bool Ahead>
inline void attend_once(const Attention& a) {
    const int blocks = (a.n_tokens + kBlockTokens - 1) / kBlockTokens;
    int block = 0;
    for (; block + 4 <= blocks; block += 4) score_blocks<Kv, Ahead, 4>(a, block);
    for (; block < blocks; ++block) score_blocks<Kv, Ahead, 1>(a, block);
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    const int panels = padded(a.head_size) / kLanes;
    int panel = 0;
    for (; panel + kValuePanels <= panels; panel += kValuePanels) {
        sum_values<Kv, Ahead, kValuePanels>(a, panel, scale);
    }
    for (; panel < panels; ++panel) sum_values<Kv, Ahead, 1>(a, panel, scale);
}

template <typename Kv>
void attend(const Attention& a) {
    if (a.next_blocks > 0) {
        attend_once<Kv, true>(a);
    } else {
        attend_once<Kv, false>(a);
    }
}
