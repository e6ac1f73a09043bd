// The kernels once, over a vector of 16 floats; avx2.cpp and avx512.cpp define that vector and
// include this file. Everything is in their anonymous namespaces and uses no library code: an
// inline function shared between translation units that are compiled for different CPUs could
// otherwise be linked in its widest form into code that runs on the narrowest.
//
// The including file defines, for `struct Vec` (16 float lanes):
//   load store set1 zero  add sub mul div min max  fma(a, b, c) = a * b + c
//   swap_pairs     lanes (0 1 2 3 ...) -> (1 0 3 2 ...)
//   power_of_two   2^n from the float n + kRoundMagic
//   keep_above(x, limit, y)  y where x >= limit, else 0 (also where x is NaN)
//   low_lanes(x, n, y)       x in lanes below n, y in the others
//   sum max_lane             by the fixed tree
// and kRowPanels, kTilePanels, kTileRows, kValuePanels: how many of them fit the registers.

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

// P panels x R rows of outputs in registers. Each weight vector is loaded once for R rows, each
// activation once for P panels.
template <int P, int R>
inline void tile_f32(const float* w, int k, const float* x, size_t x_stride, float* y,
                     size_t y_stride, bool accumulate) {
    const size_t panel = static_cast<size_t>(k) * kLanes;
    Vec sums[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[r][p] = zero();
    }
    for (int i = 0; i < k; ++i) {
        Vec weights[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
            weights[p] = load(w + p * panel + static_cast<size_t>(i) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec value = set1(x[r * x_stride + i]);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = fma(value, weights[p], sums[r][p]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            float* out = y + r * y_stride + p * kLanes;
            store(out, accumulate ? add(load(out), sums[r][p]) : sums[r][p]);
        }
    }
}

// The last rows, fewer than a full tile: finds R = rows at compile time.
template <int P, int R>
inline void tail_rows_f32(const float* w, int k, const float* x, size_t x_stride, int rows,
                          float* y, size_t y_stride, bool accumulate) {
    if constexpr (R > 0) {
        if (rows == R) {
            tile_f32<P, R>(w, k, x, x_stride, y, y_stride, accumulate);
        } else {
            tail_rows_f32<P, R - 1>(w, k, x, x_stride, rows, y, y_stride, accumulate);
        }
    }
}

template <int P>
inline void panels_f32(const float* w, int k, const float* x, size_t x_stride, int rows, float* y,
                       size_t y_stride, bool accumulate) {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
        tile_f32<P, kTileRows>(w, k, x + r * x_stride, x_stride, y + r * y_stride, y_stride,
                               accumulate);
    }
    tail_rows_f32<P, kTileRows - 1>(w, k, x + r * x_stride, x_stride, rows - r, y + r * y_stride,
                                    y_stride, accumulate);
}

void matmul_f32(const float* w, int k, int panels, const float* x, size_t x_stride, int rows,
                float* y, size_t y_stride, bool accumulate) {
    const size_t panel = static_cast<size_t>(k) * kLanes;
    int p = 0;
    if (rows == 1) {  // many panels at once, so that their chains hide each other's latency
        for (; p + kRowPanels <= panels; p += kRowPanels) {
            tile_f32<kRowPanels, 1>(w + p * panel, k, x, x_stride, y + p * kLanes, y_stride,
                                    accumulate);
        }
    }
    for (; p + kTilePanels <= panels; p += kTilePanels) {
        panels_f32<kTilePanels>(w + p * panel, k, x, x_stride, rows, y + p * kLanes, y_stride,
                                accumulate);
    }
    for (; p < panels; ++p) {
        panels_f32<1>(w + p * panel, k, x, x_stride, rows, y + p * kLanes, y_stride, accumulate);
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

// ---- attention -------------------------------------------------------------------------------

// Scores of B blocks of 16 keys: a block is a panel whose outputs are tokens.
template <int B>
inline void score_blocks(const Attention& a, int block) {
    const float* keys[B];
    Vec dots[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] =
            reinterpret_cast<const float*>(a.k_base + a.block_table[block + b] * a.block_stride);
        dots[b] = zero();
    }
    for (int d = 0; d < a.head_size; ++d) {
        const Vec q = set1(a.q[d]);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) dots[b] = fma(q, load(keys[b] + d * kLanes), dots[b]);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        store(a.scores + (block + b) * kBlockTokens, mul(dots[b], set1(a.scale)));
    }
}

// P panels of 16 output dimensions from panel `first` on, four chains each.
template <int P>
inline void sum_values(const Attention& a, int first, float scale) {
    Vec chains[P][4];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) chains[p][c] = zero();
    }
    for (int t0 = 0; t0 < a.n_tokens; t0 += kBlockTokens) {
        const float* values = reinterpret_cast<const float*>(
                                  a.v_base + a.block_table[t0 / kBlockTokens] * a.block_stride) +
                              first * kBlockTokens * kLanes;
        const int count = a.n_tokens - t0 < kBlockTokens ? a.n_tokens - t0 : kBlockTokens;
        for (int t = 0; t < count; t += 4) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                // Past the end the weight is an exact 0, but what the block holds there may be
                // anything, so those tokens are skipped, not multiplied.
                if (t + c < count) {
                    const Vec weight = set1(a.scores[t0 + t + c]);
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) {
                        const float* value = values + (p * kBlockTokens + t + c) * kLanes;
                        chains[p][c] = fma(weight, load(value), chains[p][c]);
                    }
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

void attend_f32(const Attention& a) {
    const int blocks = (a.n_tokens + kBlockTokens - 1) / kBlockTokens;
    int block = 0;
    for (; block + 4 <= blocks; block += 4) score_blocks<4>(a, block);
    for (; block < blocks; ++block) score_blocks<1>(a, block);
    const float scale = 1.0f / exp_and_sum(a.scores, a.n_tokens);
    const int panels = padded(a.head_size) / kLanes;
    int panel = 0;
    for (; panel + kValuePanels <= panels; panel += kValuePanels) {
        sum_values<kValuePanels>(a, panel, scale);
    }
    for (; panel < panels; ++panel) sum_values<1>(a, panel, scale);
}
