"""Reading llama2.c's v0 files with NumPy alone: converters run where pyllama2c need not be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sizes:
    """A v0 file's header."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int


def read_checkpoint(path: Path) -> tuple[Sizes, dict[str, npt.NDArray[np.float32]]]:
    """Map a v0 file whose classifier is the embedding table.

    Returns:
        Its sizes, and views of its tensors; those of all layers are stacked.
    """
    sizes = Sizes(*map(int, np.fromfile(path, np.int32, 7)))
    if sizes.vocab_size <= 0:
        raise ValueError(f"{path} has a classifier of its own; the benchmarks take tied ones only")
    n, dim, hidden = sizes.n_layers, sizes.dim, sizes.hidden_dim
    kv_dim = dim // sizes.n_heads * sizes.n_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding_table": (sizes.vocab_size, dim),
        "attention_norm": (n, dim),
        "wq": (n, dim, dim),
        "wk": (n, kv_dim, dim),
        "wv": (n, kv_dim, dim),
        "wo": (n, dim, dim),
        "ffn_norm": (n, dim),
        "w1": (n, hidden, dim),
        "w2": (n, dim, hidden),
        "w3": (n, hidden, dim),
        "rms_final": (dim,),
    }
    values = np.memmap(path, np.float32, "r", offset=28)
    tensors = {}
    start = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = np.asarray(values[start : start + size].reshape(shape))
        start += size
    return sizes, tensors
