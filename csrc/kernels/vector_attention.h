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

// H of the heads, which are computed together: keys and values are read once for all of them.
template <int H>
struct Heads {
    Heads(const Attention& a, int head) {
        for (int h = 0; h < H; ++h) {
            q[h] = a.q + (head + h) * a.head_size;
            scores[h] = a.scores + h * padded(a.n_tokens);
            out[h] = a.out + (head + h) * a.head_size;
        }
    }
    const float* q[H];
    float* scores[H];
    float* out[H];
    float scale[H];  // 1 / the sum of the weights
};

// Scores of B blocks of 16 keys for H queries: a block is a panel whose outputs are tokens.
template <typename Kv, bool Ahead, int H, int B>
inline void score_blocks(const Attention& a, const Heads<H>& heads, int block) {
    const typename Kv::Element *keys[B], *ahead[B];
    Vec dots[H][B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_elements<Kv>(kv_block(a, a.k_base, block + b));
        if constexpr (Ahead) ahead[b] = kv_elements<Kv>(kv_block_ahead(a, a.k_next, block + b));
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) dots[h][b] = zero();
    }
    for (int d = 0; d < a.head_size; ++d) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            const Vec key = Kv::load_16(keys[b] + d * kLanes);
            if constexpr (Ahead) __builtin_prefetch(ahead[b] + d * kLanes, 0, 2);
#pragma GCC unroll 4
            for (int h = 0; h < H; ++h) dots[h][b] = fma(set1(heads.q[h][d]), key, dots[h][b]);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            store(heads.scores[h] + (block + b) * kBlockTokens, mul(dots[h][b], set1(a.scale)));
        }
    }
}

// Adds the values of a block's first `count` tokens to four chains. What the block holds past the
// last token may be anything: those are skipped, not multiplied by their weight, an exact 0.
template <typename Kv, bool Ahead, int H, int P>
inline void add_values(const typename Kv::Element* values, const typename Kv::Element* ahead,
                       const Heads<H>& heads, int first, int count, Vec (&chains)[H][P][4]) {
    for (int t = 0; t < count; t += 4) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            if (t + c >= count) break;
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int place = (p * kBlockTokens + t + c) * kLanes;
                const Vec value = Kv::load_16(values + place);
                if constexpr (Ahead) __builtin_prefetch(ahead + place, 0, 2);
#pragma GCC unroll 4
                for (int h = 0; h < H; ++h) {
                    const Vec weight = set1(heads.scores[h][first + t + c]);
                    chains[h][p][c] = fma(weight, value, chains[h][p][c]);
                }
            }
        }
    }
}

// P panels of 16 output dimensions from panel `panel` on.
template <typename Kv, bool Ahead, int H, int P>
inline void sum_values(const Attention& a, const Heads<H>& heads, int panel) {
    Vec chains[H][P][4];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) chains[h][p][c] = zero();
        }
    }
    const int offset = panel * kBlockTokens * kLanes;
    for (int first = 0; first < a.n_tokens; first += kBlockTokens) {
        const int b = first / kBlockTokens, left = a.n_tokens - first;
        const typename Kv::Element* values = kv_elements<Kv>(kv_block(a, a.v_base, b)) + offset;
        const typename Kv::Element* ahead = values;
        if constexpr (Ahead) ahead = kv_elements<Kv>(kv_block_ahead(a, a.v_next, b)) + offset;
        if (left >= kBlockTokens) {
            add_values<Kv, Ahead, H, P>(values, ahead, heads, first, kBlockTokens, chains);
        } else {
            add_values<Kv, Ahead, H, P>(values, ahead, heads, first, left, chains);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const Vec total =
                add(add(chains[h][p][0], chains[h][p][1]), add(chains[h][p][2], chains[h][p][3]));
            store_part(heads.out[h], (panel + p) * kLanes, a.head_size,
                       mul(total, set1(heads.scale[h])));
        }
    }
}

// Values of up to 8 dimensions stand in pairs, and so do their chains: of tokens 0 and 1, 2 and 3.
// Models with such heads are too small for prefetching to matter.
template <typename Kv, int H>
inline void sum_narrow_values(const Attention& a, const Heads<H>& heads) {
    constexpr int kHalf = kLanes / 2;
    Vec chains[H][2];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) chains[h][0] = chains[h][1] = zero();
    for (int first = 0; first < a.n_tokens; first += kBlockTokens) {
        const typename Kv::Element* values =
            kv_elements<Kv>(kv_block(a, a.v_base, first / kBlockTokens));
        const int left = a.n_tokens - first;
#pragma GCC unroll 8
        for (int t = 0; t < kBlockTokens; t += 2) {
            if (t >= left) break;
            const Vec pair = Kv::load_16(values + t * kHalf);
#pragma GCC unroll 4
            for (int h = 0; h < H; ++h) {
                Vec& chain = chains[h][t / 2 % 2];
                const Vec sum = fma(set_halves(heads.scores[h] + first + t), pair, chain);
                // The last token's partner is skipped as in add_values().
                chain = t + 1 == left ? low_lanes(sum, kHalf, chain) : sum;
            }
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
        const Vec low = add(chains[h][0], swap_halves(chains[h][0]));
        const Vec high = add(chains[h][1], swap_halves(chains[h][1]));
        store_part(heads.out[h], 0, a.head_size, mul(add(low, high), set1(heads.scale[h])));
    }
}

static_assert(kQueryHeads <= kHeadsAtOnce && kValuePanels >= kQueryHeads);

// All P at a time, then what is left one by one.
template <typename Kv, bool Ahead, int H, int P>
inline void sum_all_values(const Attention& a, const Heads<H>& heads) {
    const int panels = padded(a.head_size) / kLanes;
    int panel = 0;
    for (; panel + P <= panels; panel += P) sum_values<Kv, Ahead, H, P>(a, heads, panel);
    for (; panel < panels; ++panel) sum_values<Kv, Ahead, H, 1>(a, heads, panel);
}

template <typename Kv, bool Ahead, int H>
inline void attend_heads(const Attention& a, int head) {
    Heads<H> heads(a, head);
    const int blocks = (a.n_tokens + kBlockTokens - 1) / kBlockTokens;
    constexpr int kBlocks = 4 / H;
    int block = 0;
    for (; block + kBlocks <= blocks; block += kBlocks) {
        score_blocks<Kv, Ahead, H, kBlocks>(a, heads, block);
    }
    for (; block < blocks; ++block) score_blocks<Kv, Ahead, H, 1>(a, heads, block);
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) heads.scale[h] = 1.0f / exp_and_sum(heads.scores[h], a.n_tokens);
    if (narrow_values(a.head_size)) return sum_narrow_values<Kv, H>(a, heads);
    sum_all_values<Kv, Ahead, H, kValuePanels / H>(a, heads);
}

template <typename Kv, int H>
inline void attend_heads(const Attention& a, int head) {
    // The first to come asks for what comes next.
    if (head == 0 && a.next_blocks > 0) {
        attend_heads<Kv, true, H>(a, head);
    } else {
        attend_heads<Kv, false, H>(a, head);
    }
}

template <typename Kv>
void attend(const Attention& a) {
    int head = 0;
    for (; head + kQueryHeads <= a.n_heads; head += kQueryHeads) {
        attend_heads<Kv, kQueryHeads>(a, head);
    }
    for (; head < a.n_heads; ++head) attend_heads<Kv, 1>(a, head);
}
