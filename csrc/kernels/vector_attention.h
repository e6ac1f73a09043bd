// The KV cache and attention over a vector of 16 floats; see vector_kernels.h, behind which the
// ISAs' files include this one.

struct KvF32 {
    static constexpr KvType type = KvType::kFloat32;
    using Element = float;
    static inline Vec load_16(const Element* p) { return load(p); }
    static inline void store_16(Vec v, Vec, Element* p) { store(p, v); }
};

struct KvF16 {
    static constexpr KvType type = KvType::kFloat16;
    using Element = uint16_t;
    static inline Vec load_16(const Element* p) { return load_half(p); }
    static inline void store_16(Vec v, Vec, Element* p) { store_half(p, v); }
};

struct KvQ8 {
    static constexpr KvType type = KvType::kInt8;
    using Element = int8_t;
    static inline Vec load_16(const Element* p) { return load_signed_bytes(p); }
    static inline void store_16(Vec v, Vec inverse, Element* p) {
        round_to_bytes(mul(v, inverse), p);
    }
};

// Lanes d .. d + 15 of a vector of n, zero beyond its end.
inline Vec load_part(const float* x, int d, int n) {
    return d + kLanes <= n ? load(x + d) : low_lanes(load(x + d), n - d, zero());
}

// What to multiply with before rounding to int8; writes the scale. Nothing for float types.
template <typename Kv>
inline Vec kv_inverse(const float* x, int n, float* scale) {
    if constexpr (Kv::type == KvType::kInt8) {
        Vec most = zero();
        for (int d = 0; d < n; d += kLanes) most = max(most, abs(load_part(x, d, n)));
        const float largest = max_lane(most);
        *scale = largest / 127.0f;
        return set1(largest >= kLeastQuantized ? 127.0f / largest : 0.0f);
    }
    return zero();
}

template <typename Kv>
inline float* kv_scales(char* elements, int n) {
    return reinterpret_cast<float*>(elements + sizeof(typename Kv::Element) * n);
}

template <typename Kv>
void store_key(const float* k, int head_size, int slot, char* keys) {
    typename Kv::Element* to = reinterpret_cast<typename Kv::Element*>(keys) + slot;
    const Vec inverse =
        kv_inverse<Kv>(k, head_size, kv_scales<Kv>(keys, head_size * kBlockTokens) + slot);
    for (int d = 0; d < head_size; d += kLanes) {
        typename Kv::Element part[kLanes];
        Kv::store_16(load_part(k, d, head_size), inverse, part);
        for (int i = 0; i < kLanes && d + i < head_size; ++i) to[(d + i) * kBlockTokens] = part[i];
    }
}

template <typename Kv>
void store_value(const float* v, int head_size, int slot, char* values) {
    typename Kv::Element* to = reinterpret_cast<typename Kv::Element*>(values) + slot * kLanes;
    const Vec inverse = kv_inverse<Kv>(
        v, head_size, kv_scales<Kv>(values, padded(head_size) * kBlockTokens) + slot);
    for (int d = 0; d < head_size; d += kLanes) {
        Kv::store_16(load_part(v, d, head_size), inverse, to + d * kBlockTokens);
    }
}

template <typename Kv>
inline const typename Kv::Element* kv_block(const Attention& a, const char* base, int block) {
    return reinterpret_cast<const typename Kv::Element*>(base +
                                                         a.block_table[block] * a.block_stride);
}

// Scores of B blocks of 16 keys: a block is a panel whose outputs are tokens.
template <typename Kv, bool Ahead, int B>
inline void score_blocks(const Attention& a, int block) {
    const typename Kv::Element *keys[B], *values[B];
    Vec dots[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = kv_block<Kv>(a, a.k_base, block + b);
        values[b] = kv_block<Kv>(a, a.v_base, block + b);
        dots[b] = zero();
    }
    for (int d = 0; d < a.head_size; ++d) {
        const Vec q = set1(a.q[d]);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            dots[b] = fma(q, Kv::load_16(keys[b] + d * kLanes), dots[b]);
            // The values follow when all scores are known.
            if constexpr (Ahead) __builtin_prefetch(values[b] + d * kLanes, 0, 2);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        Vec scale = set1(a.scale);
        if constexpr (Kv::type == KvType::kInt8) {
            scale = mul(scale,
                        load(reinterpret_cast<const float*>(keys[b] + a.head_size * kBlockTokens)));
        }
        store(a.scores + (block + b) * kBlockTokens, mul(dots[b], scale));
    }
}

// P panels of 16 output dimensions from panel `first` on, four chains each.
template <typename Kv, bool Ahead, int P>
inline void sum_values(const Attention& a, int first, float scale) {
    Vec chains[P][4];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) chains[p][c] = zero();
    }
    const int n_blocks = (a.n_tokens + kBlockTokens - 1) / kBlockTokens;
    for (int b = 0; b < n_blocks; ++b) {
        const int offset = first * kBlockTokens * kLanes;
        const typename Kv::Element* values = kv_block<Kv>(a, a.v_base, b) + offset;
        const typename Kv::Element* ahead =
            Ahead ? kv_block<Kv>(a, a.k_ahead, b) + offset : nullptr;
        const float* weights = a.scores + b * kBlockTokens;
        const int count = a.n_tokens - b * kBlockTokens;
        for (int t = 0; t < kBlockTokens; t += 4) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                // Past the end the weight is an exact 0, but what the block holds there may be
                // anything, so those tokens are skipped, not multiplied.
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
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
        const Vec total =
            mul(add(add(chains[p][0], chains[p][1]), add(chains[p][2], chains[p][3])), set1(scale));
        const int d = (first + p) * kLanes;
        if (d + kLanes <= a.head_size) {
            store(a.out + d, total);
        } else {
            float last[kLanes];
            store(last, total);
            for (int i = 0; d + i < a.head_size; ++i) a.out[d + i] = last[i];
        }
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
    if constexpr (Kv::type == KvType::kInt8) {
        for (int b = 0; b < blocks; ++b) {
            const float* scales = reinterpret_cast<const float*>(kv_block<Kv>(a, a.v_base, b) +
                                                                 panels * kLanes * kBlockTokens);
            float* weights = a.scores + b * kBlockTokens;
            store(weights, mul(load(weights), load(scales)));
        }
    }
    int panel = 0;
    for (; panel + kValuePanels <= panels; panel += kValuePanels) {
        sum_values<Kv, Ahead, kValuePanels>(a, panel, scale);
    }
    for (; panel < panels; ++panel) sum_values<Kv, Ahead, 1>(a, panel, scale);
}

template <typename Kv>
void attend(const Attention& a) {
    if (a.k_ahead != nullptr) {
        attend_once<Kv, true>(a);
    } else {
        attend_once<Kv, false>(a);
    }
}
