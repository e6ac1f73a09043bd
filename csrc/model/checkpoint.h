// llama2.c's checkpoint files (karpathy/llama2.c, export.py), versions 0, 1 and 2.
//
// v0 "legacy": 7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: the
//    classifier is not tied), max_seq_len; then float32 tensors, each over all layers: embedding,
//    attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, final norm, two tables of
//    max_seq_len * head_size / 2 cosines and sines (unused), classifier if untied.
// v1: "ak42", int32 version, the 7 int32, a byte (tied?), zeros up to 256; then float32:
//    attention_norm, ffn_norm, final norm, embedding, wq, wk, wv, wo, w1, w2, w3, classifier.
// v2: as v1, an int32 group size behind the byte; the norms float32, every other tensor as int8
//    values followed by a float32 scale for each group of its elements.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "model/tensors.h"

namespace pyllama2c {

struct Checkpoint {
    int version = 0;
    int group_size = 0;  // v2
    ModelTensors tensors;
};

// Parses `size` bytes at `data`, copying nothing and allocating for the layers' descriptions alone.
// Throws CheckpointError saying which field is wrong and what was expected.
Checkpoint parse_checkpoint(const unsigned char* data, size_t size);

// Maps the file and parses it; the tensors keep the map alive.
Checkpoint open_checkpoint(const std::string& path);

}  // namespace pyllama2c
