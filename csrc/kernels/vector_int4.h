// The search for int4 weights over a vector of 16 floats, a lane for each row; see
// vector_kernels.h, behind which vector_table.h includes this file.

inline Vec inverse_of(Vec scale) {
    return keep_above(abs(scale), set1(FLT_MIN), div(set1(1.0f), scale));
}

inline Vec int4_steps(Vec x, Vec inverse) {
    return min(max(mul(x, inverse), set1(-8.0f)), set1(7.0f));
}

// The best scale so far, and the squared error of the group rounded to it.
struct Int4Search {
    Vec best, least;

    // Tries a scale and returns the one that fits its rounding best.
    inline Vec consider(const float* x, Vec scale) {
        const Vec inverse = inverse_of(scale), magic = set1(kRoundMagic);
        Vec error = zero(), along = zero(), length = zero();
#pragma GCC unroll 4
        for (int i = 0; i < kInt4Group; ++i) {
            const Vec xi = load(x + i * kLanes);
            const Vec q = sub(add(int4_steps(xi, inverse), magic), magic);
            const Vec miss = sub(mul(q, scale), xi);
            error = add(error, mul(miss, miss));
            along = add(along, mul(q, xi));
            length = add(length, mul(q, q));
        }
        best = select_below(error, least, scale, best);
        least = select_below(error, least, error, least);
        return keep_above(length, set1(1.0f), div(along, length));
    }
};

void quantize_int4(const float* x, int8_t* q, uint16_t* scales) {
    Vec extreme = zero();
    for (int i = 0; i < kInt4Group; ++i) {
        const Vec xi = load(x + i * kLanes);
        extreme = select_below(abs(extreme), abs(xi), xi, extreme);
    }
    Int4Search search{div(extreme, set1(-8.0f)), set1(__builtin_inff())};
    for (const float steps : kInt4Steps) {
        const Vec refined = search.consider(x, div(extreme, set1(steps)));
        search.consider(x, refined);
    }
    store_half(scales, min(max(search.best, set1(-kLargestHalf)), set1(kLargestHalf)));
    const Vec inverse = inverse_of(load_half(scales));
    for (int i = 0; i < kInt4Group * kLanes; i += kLanes) {
        round_to_bytes(int4_steps(load(x + i), inverse), q + i);
    }
}
