// The kernels once, over a vector of 16 floats; avx2.cpp (with avx2_vector.h), avxvnni.cpp (too),
// avx512.cpp and neon.cpp define that vector and include vector_table.h. Everything is in their
// anonymous namespaces and uses no library code: an inline function shared between translation
// units that are compiled for different CPUs could otherwise be linked in its widest form into code
// that runs on the narrowest.
//
// A new instruction set is one such file, a line each in cpu_info.cpp, dispatch.cpp, kernels.h and
// CMakeLists.txt, and no change here. It defines, for `struct Vec` (16 float lanes):
//   load store set1 zero  add sub mul div  fma(a, b, c) = a * b + c, rounded once
//   min max        b where a is NaN
//   set_halves(p)  p[0] in lanes 0 to 7, p[1] in the others
//   swap_pairs     lanes (0 1 2 3 ...) -> (1 0 3 2 ...)
//   swap_halves    lanes (0 ... 15) -> (8 ... 15 0 ... 7)
//   power_of_two   2^n from the float n + kRoundMagic
//   keep_above(x, limit, y)  y where x >= limit, else 0 (also where x is NaN)
//   select_below(a, b, x, y) x where a < b, else y (also where one is NaN)
//   low_lanes(x, n, y)       x in lanes below n, y in the others
//   load_low(p, n)           reads n floats only, 0 in the other lanes
//   sum max_lane             by the fixed tree
//   has_nan                  whether a lane is a NaN
//   abs  load_half store_half (half precision)  load_bf16 (16 pairs, as two Vec)
// and for whole numbers: `Ints` (16 int32 lanes), `Bytes` and `Nibbles` (16 lanes of 4 weights of
// int8 and int4), `Quad` (4 activations for all lanes):
//   set1_int add_int sum_int to_float  load_bytes load_nibbles set1_quad
//   dot(sums, weights, quad) adds 4 products in each lane, exactly, with weights that are kBias8
//                            (load_bytes) or kBias4 (load_nibbles) too large
//   `NibbleSums` are the sums of nibbles of one group: start_nibbles(start), dot(), and
//   end_nibbles(sums, start) for the Ints
//   store_fourth(x, p, i)    stores the lanes as bytes p[i], p[4 + i], ... and touches no other:
//                            another thread may be storing those
//   round_to_bytes(x, q)     stores the lanes as int8, rounded with ties to even, NaN as 0;
//                            returns them
// and how many panels and rows of a tile fit the registers: kRowPanels, kTilePanels, kTileRows for
// float weights, kRowPanelsQ, kTileRowsQ, kTileRowsQG (in several groups) for int8,
// kTilePanelsQ4, kTileRowsQ4 for int4, kValuePanels and kQueries (up to kQueriesAtOnce) in
// attention.

constexpr size_t kLine = 64;     // bytes of a line of a cache
constexpr int kL1 = 3, kL2 = 2;  // where __builtin_prefetch() is to bring one

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

// ---- int8 --------------------------------------------------------------------------------------

// Lanes d .. d + 15 of a vector of n, zero beyond its end.
inline Vec load_part(const float* x, int d, int n) {
    return d + kLanes <= n ? load(x + d) : load_low(x + d, n - d);
}

// What an int8 vector's steps are worth, and what turns floats into such steps.
struct Step {
    float size, inverse;
};

// poison: zeros, or a NaN where a value was an infinity or a NaN: then the size is NaN.
inline Step step_for(Vec most, Vec poison) {
    const float largest = max_lane(most);
    return {has_nan(poison) ? __builtin_nanf("") : largest / 127.0f,
            largest >= kLeastQuantized ? 127.0f / largest : 0.0f};
}

inline Step step_for(const float* x, int n) {
    Vec most = zero(), poison = zero();
    for (int d = 0; d < n; d += kLanes) {
        const Vec part = load_part(x, d, n);
        most = max(abs(part), most);  // in this order no NaN
        poison = fma(part, zero(), poison);
    }
    return step_for(most, poison);
}

// Lanes d .. d + 15 of x [n] as int8, zeros behind its end.
inline Ints round_part(const float* x, int d, int n, Step step, int8_t* q) {
    return round_to_bytes(mul(load_part(x, d, n), set1(step.inverse)), q);
}

void quantize(const float* x, int n, int group, int8_t* q, float* scales, int32_t* sums) {
    for (int start = 0; start < n; start += group, ++scales, ++sums) {
        const int count = start + group < n ? group : n - start;
        const Step step = step_for(x + start, count);
        Ints total = set1_int(0);
        for (int d = 0; d < count; d += kLanes) {
            total = add_int(total, round_part(x + start, d, count, step, q + start + d));
        }
        *scales = step.size;
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
