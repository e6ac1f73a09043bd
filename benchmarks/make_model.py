"""Write a llama2.c model of random weights, of any shape.

Speed does not depend on what the weights say. Without options it is the reference model of 93
million parameters (373 MB) that the figures in README.md are measured on.

    python benchmarks/make_model.py model.bin
    python benchmarks/make_model.py small.bin --dim 288 --hidden-dim 768 --layers 6 --heads 6
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint import Checkpoint, tensor_shapes
from pyllama2c.checkpoint.base import LazyTensors
from pyllama2c.config import ModelConfig
from pyllama2c.convert.llama2c import write_v0, write_v1

REFERENCE = ModelConfig(
    dim=768, hidden_dim=2268, n_layers=12, n_heads=12, n_kv_heads=12, vocab_size=3000,
    max_seq_len=768,
)  # fmt: skip
"""The shape called 93M."""

SMOKE = ModelConfig(
    dim=64, hidden_dim=172, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, max_seq_len=128
)
"""A shape for `--smoke` runs, which are there to see that a script works."""


def make_model(
    path: Path, config: ModelConfig = REFERENCE, version: int = 0, seed: int = 0
) -> Path:
    """Write a checkpoint of llama2.c's version 0 or 1, and return its path.

    The weights have the spread of a model that training begins with, so that nothing overflows.
    """
    rng = np.random.default_rng(seed)

    def weight(shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        weights = rng.standard_normal(shape, dtype=np.float32)
        weights *= np.float32(0.02)
        return weights

    readers = {
        name: lambda shape=shape: weight(shape) for name, shape in tensor_shapes(config).items()
    }
    checkpoint = Checkpoint(config, LazyTensors(readers), "random", "float32", path)
    with path.open("wb") as file:
        (write_v0 if version == 0 else write_v1)(file, checkpoint)
    return path


def main() -> None:
    """Write the model that the options describe."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--dim", type=int, default=REFERENCE.dim)
    parser.add_argument("--hidden-dim", type=int, default=REFERENCE.hidden_dim)
    parser.add_argument("--layers", type=int, default=REFERENCE.n_layers)
    parser.add_argument("--heads", type=int, default=REFERENCE.n_heads)
    parser.add_argument("--kv-heads", type=int, help="[default: as many as heads]")
    parser.add_argument("--vocab", type=int, default=REFERENCE.vocab_size)
    parser.add_argument("--context", type=int, default=REFERENCE.max_seq_len)
    parser.add_argument("--untied", action="store_true", help="a classifier of its own")
    parser.add_argument("--version", type=int, choices=(0, 1), default=0, help="of the format")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = ModelConfig(
        dim=args.dim,
        hidden_dim=args.hidden_dim,
        n_layers=args.layers,
        n_heads=args.heads,
        n_kv_heads=args.kv_heads or args.heads,
        vocab_size=args.vocab,
        max_seq_len=args.context,
        tied_embeddings=not args.untied,
    )
    make_model(args.path, config, args.version, args.seed)
    print(f"{args.path}: {config.n_params:,} parameters, {args.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
