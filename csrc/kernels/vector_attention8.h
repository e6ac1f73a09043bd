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
    to += slot / 4 * kLine + slot % 4;
    for (int d = 0; d < head_size; d += kLanes) {
        uint8_t part[kLanes];
        round_part(v, d, head_size, step, reinterpret_cast<int8_t*>(part));
        // Byte by byte: another thread may be storing the token next to this one.
        for (int i = 0; i < kLanes; ++i) to[d * kBlockTokens + i * 4] = part[i] ^ 128;
    }
}

inline const uint8_t* kv_bytes(const char* block) {
    return reinterpret_cast<const uint8_t*>(block);
}

// Scores of B blocks of 16 keys.
template <bool Ahead, int B>
inline void score_blocks8(const Attention& a, int block, float q_step, int q_sum) {
    const uint8_t *keys[B], *ahead[B];
    Ints dots[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_bytes(kv_block(a, a.k_base, block + b));
        if constexpr (Ahead) ahead[b] = kv_bytes(kv_block_ahead(a, a.k_next, block + b));
        dots[b] = set1_int(-kBias8 * q_sum);
    }
    for (int i = 0; i < quads(a.head_size); ++i) {
        const Quad quad = set1_quad(a.q8 + 4 * i);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            dots[b] = dot(dots[b], load_bytes(keys[b] + i * kLine), quad);
            if constexpr (Ahead) __builtin_prefetch(ahead[b] + i * kLine, 0, 2);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        if constexpr (Ahead) __builtin_prefetch(ahead[b] + key8_elements(a.head_size), 0, 2);
        const Vec key_steps = load(kv_scales(keys[b], key8_elements(a.head_size)));
        store(a.scores + (block + b) * kBlockTokens,
              mul(to_float(dots[b]), mul(set1(q_step), key_steps)));
    }
}

// A block's 16 weights in int8; they take the place of its scores.
struct BlockWeights {
    int8_t q[kBlockTokens];
    int32_t sum;
    float step;
};

inline BlockWeights round_weights(const Attention& a, int block) {
    const uint8_t* values = kv_bytes(kv_block(a, a.v_base, block));
    const int count = a.n_tokens - block * kBlockTokens;
    Vec weights = mul(load(a.scores + block * kBlockTokens),
                      load(kv_scales(values, value8_elements(a.head_size))));
    // Past the end there may be anything for a scale.
    if (count < kBlockTokens) weights = low_lanes(weights, count, zero());
    const Step step = step_for(max(weights, zero()), mul(weights, zero()));
    BlockWeights rounded;
    rounded.sum = sum_int(round_to_bytes(mul(weights, set1(step.inverse)), rounded.q));
    rounded.step = step.size;
    return rounded;
}

// P panels of 16 output dimensions from panel `first` on.
template <bool Ahead, int P>
inline void sum_values8(const Attention& a, int blocks, int first, float scale) {
    const int offset = first * kBlockTokens * kLanes;
    Vec sums[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sums[p] = zero();
    for (int b = 0; b < blocks; ++b) {
        const uint8_t* values = kv_bytes(kv_block(a, a.v_base, b)) + offset;
        const uint8_t* ahead = values;
        if constexpr (Ahead) ahead = kv_bytes(kv_block_ahead(a, a.v_next, b)) + offset;
        if constexpr (Ahead)
            __builtin_prefetch(ahead - offset + value8_elements(a.head_size), 0, 2);
        BlockWeights weights;
        __builtin_memcpy(&weights, a.scores + b * kBlockTokens, sizeof weights);
        Ints dots[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) dots[p] = set1_int(-kBias8 * weights.sum);
#pragma GCC unroll 4
        for (int i = 0; i < kBlockTokens / 4; ++i) {
            const Quad quad = set1_quad(weights.q + 4 * i);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int place = (p * kBlockTokens / 4 + i) * kLine;
                dots[p] = dot(dots[p], load_bytes(values + place), quad);
                if constexpr (Ahead) __builtin_prefetch(ahead + place, 0, 2);
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) sums[p] = fma(to_float(dots[p]), set1(weights.step), sums[p]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
        store_part(a.out, (first + p) * kLanes, a.head_size, mul(sums[p], set1(scale)));
    }
}

template <bool Ahead>
inline void attend_once8(const Attention& a) {
    const Step step = step_for(a.q, a.head_size);
    Ints total = set1_int(0);
    for (int d = 0; d < a.head_size; d += kLanes) {
        total = add_int(total, round_part(a.q, d, a.head_size, step, a.q8 + d));
    }
    const float q_step = a.scale * step.size;
    const int q_sum = sum_int(total);
    const int blocks = (a.n_tokens + kBlockTokens - 1) / kBlockTokens;
    int block = 0;
    for (; block + 4 <= blocks; block += 4) score_blocks8<Ahead, 4>(a, block, q_step, q_sum);
    for (; block < blocks; ++block) score_blocks8<Ahead, 1>(a, block, q_step, q_sum);
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    for (int b = 0; b < blocks; ++b) {
        const BlockWeights weights = round_weights(a, b);
        __builtin_memcpy(a.scores + b * kBlockTokens, &weights, sizeof weights);
    }
    const int panels = padded(a.head_size) / kLanes;
    int panel = 0;
    for (; panel + kValuePanels <= panels; panel += kValuePanels) {
        sum_values8<Ahead, kValuePanels>(a, blocks, panel, scale);
    }
    for (; panel < panels; ++panel) sum_values8<Ahead, 1>(a, blocks, panel, scale);
}

void attend8(const Attention& a) {
    Attention one = a;
    for (int head = 0; head < a.n_heads; ++head) {
        if (head == 0 && a.next_blocks > 0) {
            attend_once8<true>(one);
        } else {
            attend_once8<false>(one);
        }
        one.q += a.head_size;
        one.out += a.head_size;
    }
}
