"""Small random models for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint import tensor_shapes
from pyllama2c.checkpoint.llama2c import rotary_table_bytes, weight_order
from pyllama2c.config import ModelConfig

# Shapes that have caught mistakes: name -> config
CONFIGS: dict[str, ModelConfig] = {
    "multi-head": ModelConfig(32, 80, 2, 4, 4, 96, 64),
    "grouped-query": ModelConfig(64, 172, 3, 8, 4, 96, 64),
    "multi-query": ModelConfig(48, 52, 2, 4, 1, 96, 64),
    "untied": ModelConfig(32, 80, 2, 4, 2, 96, 64, tied_embeddings=False),
    "odd sizes": ModelConfig(42, 61, 2, 3, 3, 97, 33),  # heads of 14
    "heads of 2": ModelConfig(8, 7, 1, 4, 2, 96, 16),
    "one token": ModelConfig(16, 12, 1, 2, 1, 1, 8),
    "hidden 2268": ModelConfig(24, 2268, 1, 2, 2, 96, 16),
}


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[Any]]:
    """float32 weights at which every part of the model matters to the logits."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            tensors[name] = rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
    return tensors


def write_v0(path: Path, config: ModelConfig, tensors: dict[str, NDArray[Any]]) -> Path:
    """Write a llama2.c checkpoint of version 0."""
    vocab_size = config.vocab_size if config.tied_embeddings else -config.vocab_size
    sizes = (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads)
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *sizes, vocab_size, config.max_seq_len))
        for name in weight_order(config, 0):
            if name == "output.weight":
                file.write(bytes(rotary_table_bytes(config)))
            file.write(tensors[name].tobytes())
        if config.tied_embeddings:
            file.write(bytes(rotary_table_bytes(config)))
    return path
