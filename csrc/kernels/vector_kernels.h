// The kernels once, over a vector of 16 floats; avx2.cpp, avx512.cpp and neon.cpp define that
// vector and include this file. Everything is in their anonymous namespaces and uses no library
// code: an inline function shared between translation units that are compiled for different CPUs
// could otherwise be linked in its widest form into code that runs on the narrowest.
//
// A new instruction set is one such file, a line each in cpu_info.cpp, dispatch.cpp, kernels.h and
// CMakeLists.txt, and no change here. It defines, for `struct Vec` (16 float lanes):
//   load store set1 zero  add sub mul div min max  fma(a, b, c) = a * b + c, rounded once
//   swap_pairs     lanes (0 1 2 3 ...) -> (1 0 3 2 ...)
//   power_of_two   2^n from the float n + kRoundMagic
//   keep_above(x, limit, y)  y where x >= limit, else 0 (also where x is NaN)
//   select_below(a, b, x, y) x where a < b, else y (also where one is NaN)
//   low_lanes(x, n, y)       x in lanes below n, y in the others
//   sum max_lane             by the fixed tree
//   abs  load_half store_half (half precision)  load_signed_bytes
//   load_bf16                (16 pairs, as two Vec)
// and for whole numbers: `Ints` (16 int32 lanes), `Bytes` (16 lanes of 4 weights), `Quad` (4
// activations for all lanes):
//   set1_int add_int sum_int to_float  load_bytes load_nibbles set1_quad
//   dot(sums, weights, quad) adds 4 products in each lane, exactly, with weights that are kBias8
//                            (load_bytes) or kBias4 (load_nibbles) too large
//   round_to_bytes(x, q)     stores the lanes, rounded with ties to even, as int8; returns them
// and how many panels and rows of a tile fit the registers: kRowPanels, kTilePanels, kTileRows for
// float weights, kRowPanelsQ, kTileRowsQ for int8, kTilePanelsQ4, kTileRowsQ4 for int4,
// kValuePanels in attention.

Vec exp_vec(Vec x) {
    const Vec clamped = min(x, set1(kExpMax));
    const Vec shifted = fma(clamped, set1(kLog2E), set1(kRoundMagic));
    const Vec minus_n = sub(set1(kRoundMagic), shifted);
    Vec r = fma(minus_n, set1(kLn2Hi), clamped);
    r = fma(minus_n, set1(kLn2Lo), r);
    Vec series = set1(kExpSeries[7]);
#pragma GCC unroll 7
    for (int i = 6; i >= 0; --i) series = fma(series, r, set1(kExpSeries[i]));
    return keep_above(x, set1(kExpMin), mul(series, power_of_two(shifted)));
}

// ---- matrix products -------------------------------------------------------------------------
//
// A tile is P panels x R rows of outputs in registers: each weight vector is loaded once for R
// rows, each activation once for P panels. The four kinds of weights differ in their tiles only.

template <int P, int R>
inline void store_tile(const Matmul& m, int panel, int row, const Vec (&sums)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            float* y = m.y + (row + r) * m.y_stride + (panel + p) * kLanes;
            store(y, m.accumulate ? add(load(y), sums[r][p]) : sums[r][p]);
        }
    }
}

constexpr size_t kLine = 64, kAhead = 64;  // bytes; lines

// Asks for weights that will be wanted in a while: the same panels kAhead lines further on, or at
// their end the beginning of the next ones. The hardware's prefetchers start anew in each panel.
template <int P>
inline void prefetch(const char* w, size_t stride, size_t offset, const char* next) {
    offset += kAhead * kLine;
    const char* from = offset < stride ? w + offset : next + (offset - stride);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) __builtin_prefetch(from + p * stride, 0, 2);
}

struct F32Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>(m.k) * kLanes * 4;
    }
    template <int P, int R>
    static inline void run(const Matmul& m, int panel, int row, const char* next) {
        const size_t stride = static_cast<size_t>(m.k) * kLanes;
        const float* w = static_cast<const float*>(m.w) + panel * stride;
        const float* x = m.x + row * m.x_stride;
        Vec sums[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = zero();
        }
        for (int i = 0; i < m.k; ++i) {
            Vec weights[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) weights[p] = load(w + p * stride + i * kLanes);
            prefetch<P>(reinterpret_cast<const char*>(w), stride * 4, i * kLine, next);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec value = set1(x[r * m.x_stride + i]);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) sums[r][p] = fma(value, weights[p], sums[r][p]);
            }
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

struct Bf16Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 1) / 2) * 2 * kLanes * 2;
    }
    template <int P, int R>
    static inline void run(const Matmul& m, int panel, int row, const char* next) {
        const size_t stride = static_cast<size_t>((m.k + 1) / 2) * 2 * kLanes;
        const uint16_t* w = static_cast<const uint16_t*>(m.w) + panel * stride;
        const float* x = m.x + row * m.x_stride;
        Vec sums[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = zero();
        }
        // An odd k ends in a weight of 0 and the zero that pads x.
        for (int i = 0; i < m.k; i += 2) {
            Vec even[P], odd[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) load_bf16(w + p * stride + i * kLanes, even[p], odd[p]);
            prefetch<P>(reinterpret_cast<const char*>(w), stride * 2, i / 2 * kLine, next);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec first = set1(x[r * m.x_stride + i]);
                const Vec second = set1(x[r * m.x_stride + i + 1]);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    sums[r][p] = fma(first, even[p], sums[r][p]);
                    sums[r][p] = fma(second, odd[p], sums[r][p]);
                }
            }
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

// sums += float(dots) * (weight scale * activation scale), the end of each group
template <int P, int R>
inline void add_group(const Matmul& m, int row, int groups, int g, const Vec (&scales)[P],
                      const Ints (&dots)[R][P], Vec (&sums)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const Vec x_scale = set1(m.q_scales[(row + r) * groups + g]);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            sums[r][p] = fma(to_float(dots[r][p]), mul(scales[p], x_scale), sums[r][p]);
        }
    }
}

// Integer sums start where the weights' offset is already taken off.
template <int P, int R>
inline void start_group(const Matmul& m, int row, int groups, int g, int bias, Ints (&dots)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const Ints start = set1_int(-bias * m.q_sums[(row + r) * groups + g]);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) dots[r][p] = start;
    }
}

struct Q8Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 3) / 4) * 4 * kLanes;
    }
    template <int P, int R>
    static inline void run(const Matmul& m, int panel, int row, const char* next) {
        const int quads = (m.k + 3) / 4;
        const int groups = (m.k + m.group - 1) / m.group;
        const size_t stride = static_cast<size_t>(quads) * 4 * kLanes;
        const size_t scale_stride = (m.w_scale_step == 0 ? 1 : groups) * kLanes;
        const uint8_t* w = static_cast<const uint8_t*>(m.w) + panel * stride;
        const float* w_scales = static_cast<const float*>(m.w_scales) + panel * scale_stride;
        const int8_t* x = m.q + row * m.x_stride;
        Vec sums[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = zero();
        }
        for (int g = 0, i = 0; g < groups; ++g) {
            Ints dots[R][P];
            start_group<P, R>(m, row, groups, g, kBias8, dots);
            const int end = g + 1 < groups ? i + m.group / 4 : quads;
            for (; i < end; ++i) {
                Bytes weights[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    weights[p] = load_bytes(w + p * stride + static_cast<size_t>(i) * 4 * kLanes);
                }
                prefetch<P>(reinterpret_cast<const char*>(w), stride,
                            static_cast<size_t>(i) * kLine, next);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const Quad quad = set1_quad(x + r * m.x_stride + i * 4);
#pragma GCC unroll 16
                    for (int p = 0; p < P; ++p) dots[r][p] = dot(dots[r][p], weights[p], quad);
                }
            }
            Vec scales[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                scales[p] = load(w_scales + p * scale_stride + g * m.w_scale_step);
            }
            add_group<P, R>(m, row, groups, g, scales, dots, sums);
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

struct Q4Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 7) / 8) * 4 * kLanes;
    }
    template <int P, int R>
    static inline void run(const Matmul& m, int panel, int row, const char* next) {
        const int octets = (m.k + 7) / 8;
        const int groups = (m.k + m.group - 1) / m.group;
        const size_t stride = static_cast<size_t>(octets) * 4 * kLanes;
        const size_t scale_stride = static_cast<size_t>(groups) * kLanes;
        const uint8_t* w = static_cast<const uint8_t*>(m.w) + panel * stride;
        const uint16_t* w_scales = static_cast<const uint16_t*>(m.w_scales) + panel * scale_stride;
        const int8_t* x = m.q + row * m.x_stride;
        Vec sums[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = zero();
        }
        for (int g = 0, i = 0; g < groups; ++g) {
            Ints dots[R][P];
            start_group<P, R>(m, row, groups, g, kBias4, dots);
            const int end = g + 1 < groups ? i + m.group / 8 : octets;
            for (; i < end; ++i) {
                Bytes low[P], high[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    load_nibbles(w + p * stride + static_cast<size_t>(i) * 4 * kLanes, low[p],
                                 high[p]);
                }
                prefetch<P>(reinterpret_cast<const char*>(w), stride,
                            static_cast<size_t>(i) * kLine, next);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const Quad first = set1_quad(x + r * m.x_stride + i * 8);
                    const Quad second = set1_quad(x + r * m.x_stride + i * 8 + 4);
#pragma GCC unroll 16
                    for (int p = 0; p < P; ++p) {
                        dots[r][p] = dot(dot(dots[r][p], low[p], first), high[p], second);
                    }
                }
            }
            Vec scales[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                scales[p] = load_half(w_scales + p * scale_stride + g * kLanes);
            }
            add_group<P, R>(m, row, groups, g, scales, dots, sums);
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

// Where the weights stand that come after those before `panel`.
template <typename Tile>
inline const char* after(const Matmul& m, int panel) {
    return panel < m.panels ? static_cast<const char*>(m.w) + panel * Tile::panel_bytes(m)
                            : static_cast<const char*>(m.w_next);
}

// The last rows, fewer than a full tile: finds R = rows at compile time.
template <typename Tile, int P, int R>
inline void tail_rows(const Matmul& m, int panel, int row, int rows, const char* next) {
    if constexpr (R > 0) {
        if (rows == R) {
            Tile::template run<P, R>(m, panel, row, next);
        } else {
            tail_rows<Tile, P, R - 1>(m, panel, row, rows, next);
        }
    }
}

template <typename Tile, int P, int R>
inline void all_rows(const Matmul& m, int panel) {
    const char* next = after<Tile>(m, panel + P);
    int row = 0;
    for (; row + R <= m.rows; row += R) Tile::template run<P, R>(m, panel, row, next);
    tail_rows<Tile, P, R - 1>(m, panel, row, m.rows - row, next);
}

// One row takes many panels at a time, so that their chains hide each other's latency.
template <typename Tile, int P>
inline void lone_row(const Matmul& m, int panel) {
    for (; panel + P <= m.panels; panel += P) {
        Tile::template run<P, 1>(m, panel, 0, after<Tile>(m, panel + P));
    }
    if constexpr (P > 1) lone_row<Tile, P / 2>(m, panel);
}

// Many rows take tiles of P x R.
template <typename Tile, int Lone, int P, int R>
inline void matmul(const Matmul& m) {
    if (m.rows == 1) return lone_row<Tile, Lone>(m, 0);
    int panel = 0;
    for (; panel + P <= m.panels; panel += P) all_rows<Tile, P, R>(m, panel);
    for (; panel < m.panels; ++panel) all_rows<Tile, 1, R>(m, panel);
}

void matmul_f32(const Matmul& m) { matmul<F32Tile, kRowPanels, kTilePanels, kTileRows>(m); }
void matmul_bf16(const Matmul& m) { matmul<Bf16Tile, kRowPanels, kTilePanels, kTileRows>(m); }
void matmul_q8(const Matmul& m) { matmul<Q8Tile, kRowPanelsQ, kTilePanels, kTileRowsQ>(m); }
void matmul_q4(const Matmul& m) { matmul<Q4Tile, kRowPanelsQ, kTilePanelsQ4, kTileRowsQ4>(m); }

void quantize(const float* x, int n, int group, int8_t* q, float* scales, int32_t* sums) {
    for (int start = 0; start < n; start += group, ++scales, ++sums) {
        const int end = start + group < n ? start + group : n;
        Vec most = zero();
        for (int i = start; i < end; i += kLanes) most = max(most, abs(load(x + i)));
        const float largest = max_lane(most);
        *scales = largest / 127.0f;
        const Vec inverse = set1(largest >= kLeastQuantized ? 127.0f / largest : 0.0f);
        Ints total = set1_int(0);
        for (int i = start; i < end; i += kLanes) {
            total = add_int(total, round_to_bytes(mul(load(x + i), inverse), q + i));
        }
        *sums = sum_int(total);
    }
}

// ---- element-wise and reductions -------------------------------------------------------------

void rmsnorm(const float* x, const float* weight, int n, float eps, float* y) {
    Vec squares = zero();
    for (int i = 0; i < n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    const Vec scale = set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps));
    for (int i = 0; i < n; i += kLanes) {
        store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
    }
}

void rope(float* x, const float* cos, const float* sin, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Vec v = load(x + i);
        store(x + i, fma(v, load(cos + i), mul(swap_pairs(v), load(sin + i))));
    }
    for (; i < n; i += 2) {
        const float even = x[i], odd = x[i + 1];
        x[i] = __builtin_fmaf(even, cos[i], odd * sin[i]);
        x[i + 1] = __builtin_fmaf(odd, cos[i + 1], even * sin[i + 1]);
    }
}

void swiglu(const float* gate_up, int panels, float* h) {
    for (int p = 0; p < panels; ++p, gate_up += 2 * kLanes, h += kLanes) {
        const Vec gate = load(gate_up);
        const Vec silu = div(gate, add(set1(1.0f), exp_vec(sub(zero(), gate))));
        store(h, mul(silu, load(gate_up + kLanes)));
    }
}

// x = exp(x - max(x)) over n values, zeros up to the padding; returns their sum.
float exp_and_sum(float* x, int n) {
    const Vec minus_infinity = set1(-__builtin_inff());
    const int whole = n / kLanes * kLanes;
    if (whole < n) store(x + whole, low_lanes(load(x + whole), n - whole, minus_infinity));
    Vec most = minus_infinity;
    for (int i = 0; i < n; i += kLanes) most = max(load(x + i), most);
    most = set1(max_lane(most));
    Vec total = zero();
    for (int i = 0; i < n; i += kLanes) {
        const Vec e = exp_vec(sub(load(x + i), most));
        store(x + i, e);
        total = add(total, e);
    }
    return sum(total);
}

void softmax(float* x, int n) {
    const Vec scale = set1(1.0f / exp_and_sum(x, n));
    for (int i = 0; i < n; i += kLanes) store(x + i, mul(load(x + i), scale));
}

// ---- the KV cache and attention --------------------------------------------------------------

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
