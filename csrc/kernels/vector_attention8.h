// Attention over a KV cache of int8, in whole numbers: scores and sums of values are products with
// packed matrices, like those with int8 weights. See vector_kernels.h, behind which
// vector_table.h includes this file.

inline float* kv_scales(const uint8_t* elements, int n) {
    return reinterpret_cast<float*>(const_cast<uint8_t*>(elements) + n);
}

void store_key8(const float* k, int head_size, int slot, char* keys) {
    uint8_t* to = reinterpret_cast<uint8_t*>(keys);
    const Step step = step_for(k, head_size);
    kv_scales(to, key8_elements(head_size))[slot] = step.size;
    for (int d = 0; d < head_size; d += kLanes) {
        uint8_t part[kLanes];
        round_part(k, d, head_size, step, reinterpret_cast<int8_t*>(part));
        for (int i = 0; i < kLanes; ++i) part[i] ^= 128;  // + 128
        for (int i = 0; i < kLanes && d + i < head_size; i += 4) {
            __builtin_memcpy(to + ((d + i) * kBlockTokens + slot * 4), part + i, 4);
        }
    }
}

void store_value8(const float* v, int head_size, int slot, char* values) {
    uint8_t* to = reinterpret_cast<uint8_t*>(values);
    const Step step = step_for(v, head_size);
    kv_scales(to, value8_elements(head_size))[slot] = step.size;
    to += slot / 4 * kLine;
    for (int d = 0; d < head_size; d += kLanes) {
        int8_t part[kLanes];
        const Ints whole = add_int(round_part(v, d, head_size, step, part), set1_int(128));
        store_fourth(whole, to + d * kBlockTokens, slot % 4);
    }
}

inline const uint8_t* kv_bytes(const char* block) {
    return reinterpret_cast<const uint8_t*>(block);
}

// The queries of Queries in int8.
template <int Q>
struct Queries8 {
    Queries8(const Attention& a, const Queries<Q>& queries) {
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
            q[i] = a.q8 + i * padded(a.head_size);
            const Step step = step_for(queries.q[i], a.head_size);
            Ints total = set1_int(0);
            for (int d = 0; d < a.head_size; d += kLanes) {
                const Ints part = round_part(queries.q[i], d, a.head_size, step, q[i] + d);
                total = add_int(total, part);
            }
            size[i] = a.scale * step.size;
            sum[i] = sum_int(total);
        }
    }
    int8_t* q[Q];
    int sum[Q];
    float size[Q];  // of a step, times the scale of attention
};

// Scores of B blocks of 16 keys.
template <bool Ahead, int Q, int B>
inline void score_blocks8(const Attention& a, const Queries<Q>& queries, const Queries8<Q>& rounded,
                          int block) {
    const uint8_t *keys[B], *ahead[B];
    Ints dots[Q][B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_bytes(kv_block(a, a.k_base, block + b));
        if constexpr (Ahead) ahead[b] = kv_bytes(kv_block_ahead(a, a.k_next, block + b));
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) dots[i][b] = set1_int(-kBias8 * rounded.sum[i]);
    }
    for (int d = 0; d < a.head_size; d += 4) {
        Quad parts[Q];
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) parts[i] = set1_quad(rounded.q[i] + d);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            const Bytes key = load_bytes(keys[b] + d * kBlockTokens);
            if constexpr (Ahead) __builtin_prefetch(ahead[b] + d * kBlockTokens, 0, kL2);
#pragma GCC unroll 4
            for (int i = 0; i < Q; ++i) dots[i][b] = dot(dots[i][b], key, parts[i]);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        if constexpr (Ahead) __builtin_prefetch(ahead[b] + key8_elements(a.head_size), 0, kL2);
        const Vec key_steps = load(kv_scales(keys[b], key8_elements(a.head_size)));
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
            store(queries.scores[i] + (block + b) * kBlockTokens,
                  mul(to_float(dots[i][b]), mul(set1(rounded.size[i]), key_steps)));
        }
    }
}

// Up to B blocks at once.
template <bool Ahead, int Q, int B>
inline void score_last_blocks8(const Attention& a, const Queries<Q>& queries,
                               const Queries8<Q>& rounded, int block, int left) {
    if constexpr (B > 0) {
        if (left == B) {
            score_blocks8<Ahead, Q, B>(a, queries, rounded, block);
        } else {
            score_last_blocks8<Ahead, Q, B - 1>(a, queries, rounded, block, left);
        }
    }
}

// A block's 16 weights of a query in int8, their sum, and the size of their steps. They take the
// place of its scores.
struct BlockWeights {
    int8_t q[kBlockTokens];
    int32_t sum;
    float step;
};

// `count`: the block's tokens that the query attends to.
inline void round_weights(const Attention& a, const uint8_t* values, int count, float* scores) {
    Vec weights = mul(load(scores), load(kv_scales(values, value8_elements(a.head_size))));
    // Past the end there may be anything for a scale.
    if (count < kBlockTokens) weights = low_lanes(weights, count, zero());
    const Step step = step_for(max(weights, zero()), mul(weights, zero()));
    BlockWeights rounded;
    rounded.sum = sum_int(round_to_bytes(mul(weights, set1(step.inverse)), rounded.q));
    rounded.step = step.size;
    __builtin_memcpy(scores, &rounded, sizeof rounded);
}

// P panels of 16 output dimensions from panel `first` on.
template <bool Ahead, int Q, int P>
inline void sum_values8(const Attention& a, const Queries<Q>& queries, int first) {
    const int offset = first * kBlockTokens * kLanes, blocks = n_blocks(a);
    Vec sums[Q][P];
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) sums[i][p] = zero();
    }
    for (int b = 0; b < blocks; ++b) {
        const uint8_t* values = kv_bytes(kv_block(a, a.v_base, b)) + offset;
        const uint8_t* ahead = values;
        if constexpr (Ahead) ahead = kv_bytes(kv_block_ahead(a, a.v_next, b)) + offset;
        if constexpr (Ahead)
            __builtin_prefetch(ahead - offset + value8_elements(a.head_size), 0, kL2);
        BlockWeights weights[Q];
        Ints dots[Q][P];
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
            __builtin_memcpy(&weights[i], queries.scores[i] + b * kBlockTokens, sizeof weights[i]);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) dots[i][p] = set1_int(-kBias8 * weights[i].sum);
        }
#pragma GCC unroll 4
        for (int t = 0; t < kBlockTokens; t += 4) {
            Quad parts[Q];
#pragma GCC unroll 4
            for (int i = 0; i < Q; ++i) parts[i] = set1_quad(weights[i].q + t);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int place = (p * kBlockTokens + t) * kLanes;
                const Bytes value = load_bytes(values + place);
                if constexpr (Ahead) __builtin_prefetch(ahead + place, 0, kL2);
#pragma GCC unroll 4
                for (int i = 0; i < Q; ++i) dots[i][p] = dot(dots[i][p], value, parts[i]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                sums[i][p] = fma(to_float(dots[i][p]), set1(weights[i].step), sums[i][p]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            store_part(queries.out[i], (first + p) * kLanes, a.head_size,
                       mul(sums[i][p], set1(queries.scale[i])));
        }
    }
}

struct Int8Attention {
    template <bool Ahead, int Q>
    static inline void run(const Attention& a, int row, int head) {
        Queries<Q> queries(a, row, head);
        const Queries8<Q> rounded(a, queries);
        const int blocks = n_blocks(a);
        int block = 0;
        for (; block + 4 <= blocks; block += 4) {
            score_blocks8<Ahead, Q, 4>(a, queries, rounded, block);
        }
        score_last_blocks8<Ahead, Q, 3>(a, queries, rounded, block, blocks - block);
        queries.make_weights();
        for (int b = 0; b < blocks; ++b) {
            const uint8_t* values = kv_bytes(kv_block(a, a.v_base, b));
#pragma GCC unroll 4
            for (int i = 0; i < Q; ++i) {
                round_weights(a, values, queries.n_tokens[i] - b * kBlockTokens,
                              queries.scores[i] + b * kBlockTokens);
            }
        }
        // Integer sums and float sums: half as many as the chains of floats.
        constexpr int kPanels = Q > 1 ? 2 * kValuePanels / Q : kValuePanels;
        const int panels = padded(a.head_size) / kLanes;
        int panel = 0;
        for (; panel + kPanels <= panels; panel += kPanels) {
            sum_values8<Ahead, Q, kPanels>(a, queries, panel);
        }
        for (; panel < panels; ++panel) sum_values8<Ahead, Q, 1>(a, queries, panel);
    }
};

void attend8(const Attention& a) {
    attend_in_groups<Int8Attention, kQueries>(a, 0, 0, a.n_rows * a.n_heads);
}
