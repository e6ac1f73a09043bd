// Matrix products over a vector of 16 floats; see vector_kernels.h, behind which vector_table.h
// includes this file.
//
// A tile is P panels x R rows of outputs in registers: each weight vector is loaded once for R
// rows, each activation once for P panels. The four kinds of weights differ in their tiles only.

template <int P, int R>
inline void clear(Vec (&sums)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[r][p] = zero();
    }
}

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

// R rows of activations, read column by column. One register reaches three rows: at its address, a
// stride and two strides further on. With an offset for each row, which is what GCC makes of
// x[r * stride + i], there are not enough registers, and most of them are loaded anew for each i.
template <int R, typename T>
struct Rows {
    Rows(const T* x, size_t stride) : stride(stride) {
#pragma GCC unroll 4
        for (int i = 0; i < kThirds; ++i) {
            third[i] = x + 3 * i * stride;
            asm("" : "+r"(third[i]));  // forget where that came from
        }
    }
    inline const T* at(int r) const { return third[r / 3] + r % 3 * stride; }
    inline void advance(int n) {
#pragma GCC unroll 4
        for (int i = 0; i < kThirds; ++i) third[i] += n;
    }
    static constexpr int kThirds = (R + 2) / 3;
    const T* third[kThirds];
    size_t stride;
};

// Asks for the weights that come next while a tile is computed, a little with each line of its own:
// the hardware's prefetchers start anew in each panel, and arithmetic should never wait for them.
template <int Level>
struct Prefetch {
    const char* from;  // what to ask for first, of the first panel
    size_t step;       // bytes further on with each line
    size_t turn;       // after so many bytes, go on at `next`
    const char* next;
    size_t stride;  // bytes of a panel

    template <int P>
    inline void ask(int line) const {
        const size_t offset = line * step;
        const char* at = from + offset;
        if (Level == kL1 && offset >= turn) at = next + (offset - turn);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) __builtin_prefetch(at + p * stride, 0, Level);
    }
    // Scales stand in a place of their own, too short a run for the hardware to notice.
    static inline void ask_scales(const void* at) { __builtin_prefetch(at, 0, kL2); }
};

// For weights that are near anyway.
struct NoPrefetch {
    template <int P>
    inline void ask(int) const {}
    static inline void ask_scales(const void*) {}
};

struct F32Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>(m.k) * kLanes * 4;
    }
    template <int P, int R, typename Ahead>
    static inline void run(const Matmul& m, int panel, int row, const Ahead& ahead) {
        const size_t stride = static_cast<size_t>(m.k) * kLanes;
        const float* w = static_cast<const float*>(m.w) + panel * stride;
        Rows<R, float> x(m.x + row * m.x_stride, m.x_stride);
        Vec sums[R][P];
        clear(sums);
        for (int i = 0; i < m.k; ++i) {
            Vec weights[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) weights[p] = load(w + p * stride + i * kLanes);
            ahead.template ask<P>(i);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec value = set1(*x.at(r));
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) sums[r][p] = fma(value, weights[p], sums[r][p]);
            }
            x.advance(1);
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

struct Bf16Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 1) / 2) * 2 * kLanes * 2;
    }
    template <int P, int R, typename Ahead>
    static inline void run(const Matmul& m, int panel, int row, const Ahead& ahead) {
        const size_t stride = static_cast<size_t>((m.k + 1) / 2) * 2 * kLanes;
        const uint16_t* w = static_cast<const uint16_t*>(m.w) + panel * stride;
        Rows<R, float> x(m.x + row * m.x_stride, m.x_stride);
        Vec sums[R][P];
        clear(sums);
        // An odd k ends in a weight of 0 and the zero that pads x.
        for (int i = 0; i < m.k; i += 2) {
            Vec even[P], odd[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) load_bf16(w + p * stride + i * kLanes, even[p], odd[p]);
            ahead.template ask<P>(i / 2);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec first = set1(x.at(r)[0]), second = set1(x.at(r)[1]);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    sums[r][p] = fma(first, even[p], sums[r][p]);
                    sums[r][p] = fma(second, odd[p], sums[r][p]);
                }
            }
            x.advance(2);
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
inline void start_group(const Matmul& m, int row, int groups, int g, Ints (&dots)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const Ints start = set1_int(-kBias8 * m.q_sums[(row + r) * groups + g]);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) dots[r][p] = start;
    }
}

// kOneGroup: a row of activations has one scale, as where the file brings no groups. Then float
// sums need no registers while integers are summed.
template <bool kOneGroup>
struct Q8Tile {
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 3) / 4) * 4 * kLanes;
    }
    template <int P, int R, typename Ahead>
    static inline void run(const Matmul& m, int panel, int row, const Ahead& ahead) {
        const int quads = (m.k + 3) / 4;
        const int groups = kOneGroup ? 1 : (m.k + m.group - 1) / m.group;
        const size_t stride = static_cast<size_t>(quads) * 4 * kLanes;
        const size_t scale_stride = (m.w_scale_step == 0 ? 1 : groups) * kLanes;
        const uint8_t* w = static_cast<const uint8_t*>(m.w) + panel * stride;
        const float* w_scales = static_cast<const float*>(m.w_scales) + panel * scale_stride;
        Rows<R, int8_t> x(m.q + row * m.x_stride, m.x_stride);
        Vec sums[R][P];
        clear(sums);
        for (int g = 0, i = 0; g < groups; ++g) {
            Ints dots[R][P];
            start_group<P, R>(m, row, groups, g, dots);
            const int end = g + 1 < groups ? i + m.group / 4 : quads;
            for (; i < end; ++i) {
                Bytes weights[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    weights[p] = load_bytes(w + p * stride + static_cast<size_t>(i) * 4 * kLanes);
                }
                ahead.template ask<P>(i);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const Quad quad = set1_quad(x.at(r));
#pragma GCC unroll 16
                    for (int p = 0; p < P; ++p) dots[r][p] = dot(dots[r][p], weights[p], quad);
                }
                x.advance(4);
            }
            Vec scales[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const float* at = w_scales + p * scale_stride + g * m.w_scale_step;
                scales[p] = load(at);
                ahead.ask_scales(at + P * scale_stride);
            }
            add_group<P, R>(m, row, groups, g, scales, dots, sums);
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

struct Q4Tile {
    static constexpr int kOctets = kInt4Group / 8;  // 8 inputs each, in the two halves of 4 bytes
    template <int P, int R, typename Ahead>
    static inline void add_octet(const uint8_t* w, size_t stride, Rows<R, int8_t>& x, int i,
                                 const Ahead& ahead, NibbleSums (&dots)[R][P]) {
        Nibbles low[P], high[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            load_nibbles(w + p * stride + static_cast<size_t>(i) * 4 * kLanes, low[p], high[p]);
        }
        ahead.template ask<P>(i);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Quad first = set1_quad(x.at(r)), second = set1_quad(x.at(r) + 4);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                dots[r][p] = dot(dot(dots[r][p], low[p], first), high[p], second);
            }
        }
        x.advance(8);
    }
    static inline size_t panel_bytes(const Matmul& m) {
        return static_cast<size_t>((m.k + 7) / 8) * 4 * kLanes;
    }
    template <int P, int R, typename Ahead>
    static inline void run(const Matmul& m, int panel, int row, const Ahead& ahead) {
        const int octets = (m.k + 7) / 8;
        const int groups = (m.k + kInt4Group - 1) / kInt4Group;
        const size_t stride = static_cast<size_t>(octets) * 4 * kLanes;
        const size_t scale_stride = static_cast<size_t>(groups) * kLanes;
        const uint8_t* w = static_cast<const uint8_t*>(m.w) + panel * stride;
        const uint16_t* w_scales = static_cast<const uint16_t*>(m.w_scales) + panel * scale_stride;
        Rows<R, int8_t> x(m.q + row * m.x_stride, m.x_stride);
        Vec sums[R][P];
        clear(sums);
        for (int g = 0, i = 0; g < groups; ++g) {
            NibbleSums dots[R][P];
            int start[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                start[r] = -kBias4 * m.q_sums[(row + r) * groups + g];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) dots[r][p] = start_nibbles(start[r]);
            }
            const int end = i + kOctets;
            if (end <= octets) {
#pragma GCC unroll 4
                for (int o = 0; o < kOctets; ++o, ++i) {
                    add_octet<P, R>(w, stride, x, i, ahead, dots);
                }
            } else {
                for (; i < octets; ++i) add_octet<P, R>(w, stride, x, i, ahead, dots);
            }
            Vec scales[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const uint16_t* at = w_scales + p * scale_stride + g * kLanes;
                scales[p] = load_half(at);
                if (g % 2 == 0) ahead.ask_scales(at + P * scale_stride);  // a line has two groups'
            }
            Ints whole[R][P];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) whole[r][p] = end_nibbles(dots[r][p], start[r]);
            }
            add_group<P, R>(m, row, groups, g, scales, whole, sums);
        }
        store_tile<P, R>(m, panel, row, sums);
    }
};

// Where panel `panel` stands; behind the last one, what will be multiplied with next.
template <typename Tile>
inline const char* weights_at(const Matmul& m, int panel) {
    return panel < m.panels ? static_cast<const char*>(m.w) + panel * Tile::panel_bytes(m)
                            : static_cast<const char*>(m.w_next);
}

// The only tile of its panels: the same panels some lines further on, and at their end the
// beginning of the next ones. What is on its way takes at most 16 KiB of L1.
template <typename Tile, int P>
inline Prefetch<kL1> ahead_in_panels(const Matmul& m, int panel) {
    const size_t stride = Tile::panel_bytes(m), start = (P > 4 ? 256 / P : 64) * kLine;
    const char *w = weights_at<Tile>(m, panel), *next = weights_at<Tile>(m, panel + P);
    if (start < stride) return {w + start, kLine, stride - start, next, stride};
    return {next, kLine, stride, next + stride, stride};
}

// The first of several tiles: each asks for its part of the next panels.
template <typename Tile, int P>
inline Prefetch<kL2> ahead_of_panels(const Matmul& m, int panel, int tiles) {
    const size_t stride = Tile::panel_bytes(m);
    return {weights_at<Tile>(m, panel + P), (kLine + tiles - 1) / tiles, stride, nullptr, stride};
}

// A tile of up to R rows: finds their number at compile time.
template <typename Tile, int P, int R, typename Ahead>
inline void run_tile(const Matmul& m, int panel, int row, int rows, const Ahead& ahead) {
    if constexpr (R > 0) {
        if (rows == R) {
            Tile::template run<P, R>(m, panel, row, ahead);
        } else {
            run_tile<Tile, P, R - 1>(m, panel, row, rows, ahead);
        }
    }
}

// All rows in tiles of about the same height: a flat one has too few chains to hide their latency.
template <typename Tile, int P, int R>
inline void all_rows(const Matmul& m, int panel) {
    const int tiles = (m.rows + R - 1) / R;
    if (tiles == 1) {
        return run_tile<Tile, P, R>(m, panel, 0, m.rows, ahead_in_panels<Tile, P>(m, panel));
    }
    Prefetch<kL2> ahead = ahead_of_panels<Tile, P>(m, panel, tiles);
    const size_t lines = ahead.stride / kLine;
    for (int row = 0, left = tiles; left > 0; --left) {
        const int rows = (m.rows - row + left - 1) / left;
        run_tile<Tile, P, R>(m, panel, row, rows, ahead);
        row += rows;
        ahead.from += lines * ahead.step;
    }
}

// One row takes many panels at a time, so that their chains hide each other's latency.
template <typename Tile, int P>
inline void lone_row(const Matmul& m, int panel) {
    for (; panel + P <= m.panels; panel += P) {
        if (m.far) {
            Tile::template run<P, 1>(m, panel, 0, ahead_in_panels<Tile, P>(m, panel));
        } else {
            Tile::template run<P, 1>(m, panel, 0, NoPrefetch{});
        }
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
void matmul_q8(const Matmul& m) {
    if (m.k <= m.group) return matmul<Q8Tile<true>, kRowPanelsQ, kTilePanels, kTileRowsQ>(m);
    matmul<Q8Tile<false>, kRowPanelsQ, kTilePanels, kTileRowsQG>(m);
}
void matmul_q4(const Matmul& m) { matmul<Q4Tile, kRowPanelsQ, kTilePanelsQ4, kTileRowsQ4>(m); }
