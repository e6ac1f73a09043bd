"""Small random models for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint import Checkpoint, tensor_shapes
from pyllama2c.config import ModelConfig
from pyllama2c.convert import llama2c

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


def checkpoint_of(config: ModelConfig, seed: int = 0) -> Checkpoint:
    """A Checkpoint of random float32 weights."""
    return Checkpoint(config, random_tensors(config, seed), "random", "float32", Path("random"))


def write_v0(path: Path, config: ModelConfig, tensors: dict[str, NDArray[Any]]) -> Path:
    """Write a llama2.c checkpoint of version 0."""
    with path.open("wb") as file:
        llama2c.write_v0(file, Checkpoint(config, tensors, "test", "float32", path))
    return path
