#include "backends/rotary.h"

namespace pyllama2c {

namespace {

double power(double base, int exponent) {
    double result = 1;
    for (; exponent > 0; exponent /= 2, base *= base) {
        if (exponent % 2 == 1) result *= base;
    }
    return result;
}

// x^(1 / n) for 0 < x <= 1, by Newton's iteration from 1, from where it only descends.
double root(double x, int n) {
    for (double guess = 1;;) {
        const double next = guess - (guess - x / power(guess, n - 1)) / n;
        if (!(next < guess)) return guess;
        guess = next;
    }
}

}  // namespace

RotaryTables::RotaryTables(double theta, int head_size, int max_positions)
    : head_size_(head_size),
      cos_(static_cast<size_t>(max_positions) * head_size),
      sin_(static_cast<size_t>(max_positions) * head_size) {
    const int pairs = head_size / 2;
    const double ratio = root(1 / theta, pairs);
    for (int i = 0; i < pairs; ++i) steps_.push_back(turn_by(power(ratio, i)));
    angles_.assign(pairs, {1, 0});
}

// By their Taylor series, for 0 <= angle <= 1: the last term is below 2^-60.
RotaryTables::Turn RotaryTables::turn_by(double angle) {
    Turn turn = {0, 0};
    double term = 1;  // angle^n / n!
    for (int n = 0; n < 20; ++n, term *= angle / n) {
        (n % 2 == 0 ? turn.cos : turn.sin) += n % 4 < 2 ? term : -term;
    }
    return turn;
}

// Turning on from position to position costs an error of 2^-52 or so each: far below the last bit
// of a float, even at the end of the longest context.
void RotaryTables::fill(int n) {
    for (; filled_ < n; ++filled_) {
        float* cos = cos_.data() + static_cast<size_t>(filled_) * head_size_;
        float* sin = sin_.data() + static_cast<size_t>(filled_) * head_size_;
        for (int i = 0; i < head_size_ / 2; ++i) {
            Turn& at = angles_[i];
            const Turn step = steps_[i];
            cos[2 * i] = cos[2 * i + 1] = static_cast<float>(at.cos);
            sin[2 * i + 1] = static_cast<float>(at.sin);
            sin[2 * i] = -sin[2 * i + 1];
            at = {at.cos * step.cos - at.sin * step.sin, at.sin * step.cos + at.cos * step.sin};
        }
    }
}

}  // namespace pyllama2c
