"""What every model file is read into: a config and named tensors, in one layout.

Names and layout are those of Meta's Llama and of llama2.c: a linear layer's weight is
``(outputs, inputs)``, and the rows of ``wq`` and ``wk`` are interleaved, so that rotary embedding
turns the neighbours ``(2i, 2i + 1)`` of each head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.config import ModelConfig
from pyllama2c.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """An opened model file or directory.

    Attributes:
        config: the model's sizes.
        tensors: the weights by name, exactly those of `tensor_shapes`. Each is read from the file
            when it is asked for and not kept, so holding a Checkpoint costs no memory. float32,
            float16 or bfloat16 (as ``uint16``, see `dtypes`).
        kind: what it was read from, in words: ``llama2.c v1``, ``Hugging Face``, ...
        dtype: how the weights are stored: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        path: the file or directory.
        bos_id: the token that begins a text, if the file says it.
        eos_ids: the tokens that end one, if the file says it.
    """

    config: ModelConfig
    tensors: Mapping[str, Array]
    kind: str
    dtype: str
    path: Path
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()


class LazyTensors(Mapping[str, Array]):
    """Tensors that are read each time they are asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Array]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Array:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by name, with its shape; ``output.weight`` only if not tied."""
    dim, hidden, kv_dim = config.dim, config.hidden_dim, config.kv_dim
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}"
        shapes[f"{prefix}.attention_norm.weight"] = (dim,)
        shapes[f"{prefix}.attention.wq.weight"] = (dim, dim)  # rows: n_heads * head_size
        shapes[f"{prefix}.attention.wk.weight"] = (kv_dim, dim)  # rows: n_kv_heads * head_size
        shapes[f"{prefix}.attention.wv.weight"] = (kv_dim, dim)
        shapes[f"{prefix}.attention.wo.weight"] = (dim, dim)  # columns: n_heads * head_size
        shapes[f"{prefix}.ffn_norm.weight"] = (dim,)
        shapes[f"{prefix}.feed_forward.w1.weight"] = (hidden, dim)  # gate
        shapes[f"{prefix}.feed_forward.w2.weight"] = (dim, hidden)  # down
        shapes[f"{prefix}.feed_forward.w3.weight"] = (hidden, dim)  # up
    shapes["norm.weight"] = (dim,)
    if not config.tied_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def check_layers(where: Path, n_layers: int, n_tensors: int, field: str = "n_layers") -> None:
    """Raise a CheckpointError if the layers outnumber the tensors, before a table of them is made.

    A few bytes of a config may claim two thousand million layers.
    """
    if n_layers > n_tensors:
        raise CheckpointError(
            f"{where}: {field} is {n_layers}, but there are only {n_tensors} tensors"
        )


def check_shapes(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise a CheckpointError that names the first tensor missing, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        if found[name] != shape:
            raise CheckpointError(
                f"{path}: tensor {name} has the shape {found[name]}, the config asks for {shape}"
            )
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name} has no place in a Llama model")
