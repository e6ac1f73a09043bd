#include "model/config.h"

#include <cmath>

#include "base/error.h"

namespace pyllama2c {

namespace {

void in_range(const char* field, int value, int most) {
    if (value < 1 || value > most) {
        throw CheckpointError(text(field, " is ", value, ", expected 1 to ", most));
    }
}

}  // namespace

void ModelConfig::validate() const {
    constexpr int kMost =
        1 << 24;  // far above any model, low enough that sums of widths fit an int
    in_range("dim", dim, kMost);
    in_range("hidden_dim", hidden_dim, kMost);
    in_range("n_layers", n_layers, 1 << 16);
    in_range("n_heads", n_heads, dim);
    in_range("n_kv_heads", n_kv_heads, n_heads);
    in_range("vocab_size", vocab_size, kMost);
    in_range("max_seq_len", max_seq_len, kMost);
    if (dim % n_heads != 0) {
        throw CheckpointError(text("dim is ", dim, ", expected a multiple of n_heads = ", n_heads));
    }
    if (head_size() % 2 != 0) {
        throw CheckpointError(text("dim / n_heads is ", head_size(),
                                   ", expected an even head size (positions rotate pairs)"));
    }
    if (n_heads % n_kv_heads != 0) {
        throw CheckpointError(
            text("n_heads is ", n_heads, ", expected a multiple of n_kv_heads = ", n_kv_heads));
    }
    if (!(rope_theta >= 1) || !std::isfinite(rope_theta)) {
        throw CheckpointError(text("rope_theta is ", rope_theta, ", expected a number from 1 on"));
    }
    if (!(norm_eps >= 0) || !std::isfinite(norm_eps)) {
        throw CheckpointError(text("norm_eps is ", norm_eps, ", expected 0 or a positive number"));
    }
}

}  // namespace pyllama2c
