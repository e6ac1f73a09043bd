"""llama2.c's model files: v0 (legacy), v1 (float32) and v2 (int8 with a scale per group).

The formats are those of llama2.c's ``export.py`` (https://github.com/karpathy/llama2.c); they are
written out in ``docs/formats.md``. All numbers are little-endian. `weight_order` is the one place
that knows in which order the tensors lie; the writers use it too.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint.base import Checkpoint, LazyTensors, tensor_shapes
from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = 256  # of v1 and v2, padded with zeros
V0_HEADER = struct.Struct("<7i")  # dim hidden_dim n_layers n_heads n_kv_heads vocab max_seq_len
V1_HEADER = struct.Struct("<Ii7iB")  # magic, version, the seven, shared classifier
GROUP_SIZE = struct.Struct("<i")  # v2: right behind V1_HEADER
_HEADER_FIELDS = (
    "dim",
    "hidden_dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "max_seq_len",
)
_MATRICES = (
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)


def weight_order(config: ModelConfig, version: int) -> list[str]:
    """The tensors' names in the order in which a file of this version holds them.

    v0 has its two rotary tables between ``norm.weight`` and ``output.weight``.
    """

    def every_layer(name: str) -> list[str]:
        return [f"layers.{layer}.{name}.weight" for layer in range(config.n_layers)]

    output = [] if config.tied_embeddings else ["output.weight"]
    if version == 0:
        order = ["tok_embeddings.weight", *every_layer("attention_norm")]
        for name in _MATRICES[:4]:
            order += every_layer(name)
        order += every_layer("ffn_norm")
        for name in _MATRICES[4:]:
            order += every_layer(name)
        return [*order, "norm.weight", *output]
    order = [*every_layer("attention_norm"), *every_layer("ffn_norm"), "norm.weight"]
    order.append("tok_embeddings.weight")
    for name in _MATRICES:
        order += every_layer(name)
    return order + output


def rotary_table_bytes(config: ModelConfig) -> int:
    """Bytes of v0's two tables, cosines and sines, each (max_seq_len, head_size / 2) float32."""
    return 2 * config.max_seq_len * (config.head_size // 2) * 4


def load_llama2c(path: Path) -> Checkpoint:
    """Open a llama2.c file of any version.

    Raises:
        CheckpointError: a field of the header is impossible, or the file is not exactly as long as
            its header says.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < V0_HEADER.size:
            raise CheckpointError(
                f"{path}: {size} bytes are too few for the header of a llama2.c model"
            )
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if int.from_bytes(data[:4], "little") != MAGIC:
        sizes = V0_HEADER.unpack_from(data)
        # A negative vocabulary size is v0's way to say that the classifier is not shared.
        *others, vocab_size, max_seq_len = sizes
        config = _config(path, [*others, abs(vocab_size), max_seq_len], vocab_size > 0)
        return _open_float32(path, data, config, version=0)

    if size < HEADER_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, expected a header of {HEADER_BYTES}")
    _, version, *sizes_v1, shared = V1_HEADER.unpack_from(data)
    if version not in (1, 2):
        raise CheckpointError(f"{path}: version is {version}, expected 1 or 2")
    if shared not in (0, 1):
        raise CheckpointError(f"{path}: shared_classifier is {shared}, expected 0 or 1")
    config = _config(path, sizes_v1, shared == 1)
    if version == 1:
        return _open_float32(path, data, config, version=1)
    (group_size,) = GROUP_SIZE.unpack_from(data, V1_HEADER.size)
    return _open_int8(path, data, config, group_size)


def _config(path: Path, sizes: list[int], tied: bool) -> ModelConfig:
    try:
        return ModelConfig(**dict(zip(_HEADER_FIELDS, sizes, strict=True)), tied_embeddings=tied)
    except ArgumentError as error:
        raise CheckpointError(f"{path}: no llama2.c model: {error}") from None


def _check_size(path: Path, size: int, expected: int) -> None:
    if size != expected:
        raise CheckpointError(
            f"{path}: {size} bytes, the sizes in its header make {expected}: "
            f"the file is {'truncated' if size < expected else 'too long'} or no llama2.c model"
        )


def _check_n_params(path: Path, config: ModelConfig, size: int) -> None:
    # Before any list is made as long as a hostile header asks for.
    if config.n_params > size:
        _check_size(path, size, 4 * config.n_params)


def _open_float32(path: Path, data: mmap.mmap, config: ModelConfig, version: int) -> Checkpoint:
    _check_n_params(path, config, len(data))
    shapes = tensor_shapes(config)
    readers: dict[str, Callable[[], Array]] = {}
    offset = V0_HEADER.size if version == 0 else HEADER_BYTES
    for name in weight_order(config, version):
        readers[name] = partial(_read, data, np.dtype("<f4"), shapes[name], offset)
        offset += 4 * math.prod(shapes[name])
        if version == 0 and name == "norm.weight":
            offset += rotary_table_bytes(config)
    _check_size(path, len(data), offset)
    tensors = LazyTensors({name: readers[name] for name in shapes})
    return Checkpoint(config, tensors, f"llama2.c v{version}", "float32", path)


def _open_int8(path: Path, data: mmap.mmap, config: ModelConfig, group_size: int) -> Checkpoint:
    if group_size < 1:
        raise CheckpointError(f"{path}: group_size is {group_size}, expected at least 1")
    _check_n_params(path, config, len(data))
    shapes = tensor_shapes(config)
    readers: dict[str, Callable[[], Array]] = {}
    offset = HEADER_BYTES
    for name in weight_order(config, version=2):
        n = math.prod(shapes[name])
        if len(shapes[name]) == 1:  # norms stay float32
            readers[name] = partial(_read, data, np.dtype("<f4"), shapes[name], offset)
            offset += 4 * n
            continue
        if n % group_size:
            raise CheckpointError(
                f"{path}: group_size is {group_size}, expected a divisor of the {n} elements "
                f"of {name}"
            )
        readers[name] = partial(_read_int8, data, shapes[name], offset, group_size)
        offset += n + 4 * (n // group_size)
    _check_size(path, len(data), offset)
    tensors = LazyTensors({name: readers[name] for name in shapes})
    return Checkpoint(config, tensors, "llama2.c v2", "int8", path)


def _read(data: mmap.mmap, dtype: np.dtype[np.float32], shape: tuple[int, ...], at: int) -> Array:
    array = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
    return np.require(array, requirements="A")


def _read_int8(
    data: mmap.mmap, shape: tuple[int, ...], at: int, group_size: int
) -> NDArray[np.float32]:
    # Groups run through the whole tensor as if it were flat, so one may straddle two rows.
    n = math.prod(shape)
    values = np.frombuffer(data, np.int8, n, at).reshape(-1, group_size)
    scales = np.frombuffer(data, "<f4", n // group_size, at + n)
    numbers: NDArray[np.float32] = values * scales[:, None]
    return numbers.reshape(shape)
