"""Writing llama2.c's model files: v0 and v1 in float32, v2 in int8 (``docs/formats.md``)."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint import Checkpoint, to_float32
from pyllama2c.checkpoint.llama2c import (
    GROUP_SIZE,
    HEADER_BYTES,
    MAGIC,
    V0_HEADER,
    V1_HEADER,
    weight_order,
)
from pyllama2c.config import DEFAULT_NORM_EPS, DEFAULT_ROPE_THETA, ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError


def check_llama2c_can_hold(config: ModelConfig) -> None:
    """Raise ArgumentError for what llama2.c's formats have no field for."""
    for name, fixed in (("rope_theta", DEFAULT_ROPE_THETA), ("norm_eps", DEFAULT_NORM_EPS)):
        # norm_eps may have been stored as a float32 on the way.
        if not math.isclose(getattr(config, name), fixed, rel_tol=1e-6):
            raise ArgumentError(
                f"{name} is {getattr(config, name):g}; llama2.c's formats have no field for it and "
                f"always mean {fixed:g}, so the model would compute something else: "
                "convert to a Hugging Face directory instead (--to hf)"
            )


def check_finite(checkpoint: Checkpoint, name: str, weight: NDArray[np.float32]) -> None:
    """Raise CheckpointError for what no scale can make integers of."""
    if not np.isfinite(weight).all():
        raise CheckpointError(f"{checkpoint.path}: tensor {name} holds an infinity or a NaN")


def group_size_for(config: ModelConfig, wanted: int) -> int:
    """The largest group size up to ``wanted`` that divides every row.

    llama2.c's ``runq`` quantizes each row of ``dim`` or ``hidden_dim`` in whole groups and reads
    rows that are no multiple of the group wrongly.
    """
    if wanted < 1:
        raise ArgumentError(f"group_size is {wanted}, expected at least 1")
    row = math.gcd(config.dim, config.hidden_dim)
    return max(size for size in range(1, min(wanted, row) + 1) if row % size == 0)


def write_v0(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """The legacy format, which llama2.c's ``run`` reads."""
    config = checkpoint.config
    check_llama2c_can_hold(config)
    *sizes, vocab_size, max_seq_len = _sizes(config)
    # A negative vocabulary size says that the classifier is not shared.
    signed = vocab_size if config.tied_embeddings else -vocab_size
    file.write(V0_HEADER.pack(*sizes, signed, max_seq_len))
    for name in weight_order(config, version=0):
        _write(file, to_float32(checkpoint.tensors[name]))
        if name == "norm.weight":
            for table in _rotary_tables(config):
                _write(file, table)


def write_v1(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """float32 behind a header that tells what it is."""
    check_llama2c_can_hold(checkpoint.config)
    _write_header(file, checkpoint.config, version=1)
    for name in weight_order(checkpoint.config, version=1):
        _write(file, to_float32(checkpoint.tensors[name]))


def write_v2(file: BinaryIO, checkpoint: Checkpoint, group_size: int) -> None:
    """int8 with a float32 scale for each group of ``group_size`` elements, norms in float32.

    The group size has to divide every row, see `group_size_for`.
    """
    config = checkpoint.config
    check_llama2c_can_hold(config)
    if group_size < 1 or math.gcd(config.dim, config.hidden_dim) % group_size:
        raise ArgumentError(
            f"group_size is {group_size}, expected a divisor of dim ({config.dim}) "
            f"and hidden_dim ({config.hidden_dim})"
        )
    _write_header(file, config, version=2, tail=GROUP_SIZE.pack(group_size))
    for name in weight_order(config, version=2):
        weight = to_float32(checkpoint.tensors[name])
        if weight.ndim == 1:
            _write(file, weight)
            continue
        check_finite(checkpoint, name, weight)
        values, scales = quantize(weight, group_size)
        file.write(values.data)
        _write(file, scales)


def quantize(
    weight: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8: in each group the largest magnitude becomes 127 (llama2.c's Q8_0).

    Returns the values (n_groups, group_size) and scales (n_groups,); weight = value * scale. The
    arithmetic is float32, rounded half to even, so that the bytes equal those of llama2.c's
    exporter. A group of zeros gets the scale 0.
    """
    groups = np.ascontiguousarray(weight).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    # A denormal scale has lost so many bits that its quotients may exceed 127.
    values = np.clip(np.rint(groups / divisors[:, None]), -127, 127)
    return values.astype(np.int8), scales


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    return (
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size,
        config.max_seq_len,
    )


def _write_header(file: BinaryIO, config: ModelConfig, version: int, tail: bytes = b"") -> None:
    header = V1_HEADER.pack(MAGIC, version, *_sizes(config), config.tied_embeddings) + tail
    file.write(header.ljust(HEADER_BYTES, b"\0"))


def _rotary_tables(config: ModelConfig) -> list[NDArray[np.float32]]:
    """Cosines and sines of every position, each (max_seq_len, head_size / 2)."""
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    angles = np.outer(np.arange(config.max_seq_len), config.rope_theta**-exponents)
    return [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]


def _write(file: BinaryIO, array: NDArray[np.float32]) -> None:
    file.write(np.ascontiguousarray(array, "<f4").data)
