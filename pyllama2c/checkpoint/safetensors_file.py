"""The safetensors format: a table of tensors in JSON, then their bytes.

Layout (https://huggingface.co/docs/safetensors): the header's length as 8 bytes, the header, the
data. Read here rather than by the library of that name because the base install has to read such
files, bfloat16 among them, and NumPy is all it has; writing streams one tensor at a time.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from pyllama2c.checkpoint.dtypes import DTYPES, Array
from pyllama2c.errors import CheckpointError

# The library's own limit; a header this long would name millions of tensors.
_MAX_HEADER_BYTES = 100_000_000
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8"}
_DTYPES = {**DTYPES, "uint8": np.dtype(np.uint8)}
WEIGHTS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, memory-mapped, with every size checked against the file.

    Args:
        path: the file.
        accepted: the number formats that it may hold, of F32, F16, BF16 and U8.

    Raises:
        CheckpointError: the file is truncated, inconsistent or holds other number formats; the
            message names the tensor and field.
    """

    def __init__(self, path: Path, accepted: Collection[str] = WEIGHTS) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
            # The map stays valid after the file is closed, and as long as any array on it lives.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata, self.tensors = _parse_header(path, self._bytes, size, accepted)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> Array:
        """A tensor as a read-only view of the mapped file; bfloat16 comes as ``uint16``."""
        info = self.tensors[name]
        dtype = _DTYPES[info.dtype]
        array = np.frombuffer(self._bytes, dtype, math.prod(info.shape), info.begin)
        # Files of other writers may start their data at an odd address.
        return np.require(array.reshape(info.shape), requirements="A")


def _parse_header(
    path: Path, data: mmap.mmap, size: int, accepted: Collection[str]
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path}: the header's length is {length}, "
            f"expected at most {min(_MAX_HEADER_BYTES, size - 8)}"
        )
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is no valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is no table of strings")

    tensors = {
        name: _parse_entry(f"{path}: tensor {name!r}", entry, 8 + length, size, accepted)
        for name, entry in header.items()
    }
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            raise CheckpointError(
                f"{path}: tensor {name!r} begins at byte {info.begin}, expected {end}: "
                "tensors must follow each other without gaps or overlaps"
            )
        end = info.end
    if end != size:
        raise CheckpointError(f"{path}: the tensors end at byte {end}, the file at {size}")
    return metadata, tensors


def _parse_entry(
    where: str, entry: Any, data_begin: int, size: int, accepted: Collection[str]
) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is no JSON object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in accepted:
        raise CheckpointError(f"{where}: dtype is {dtype!r}, expected one of {', '.join(accepted)}")
    shape = entry.get("shape")
    # NumPy bounds the axes of empty arrays as well.
    if not _is_size_list(shape) or len(shape) > 32 or math.prod(n or 1 for n in shape) >= 2**60:
        raise CheckpointError(f"{where}: shape is {shape!r:.80}, expected a list of sizes")
    offsets = entry.get("data_offsets")
    if not _is_size_list(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets is {offsets!r:.80}, expected two offsets")
    begin, end = (data_begin + offset for offset in offsets)
    if not begin <= end <= size:
        raise CheckpointError(
            f"{where}: data_offsets is {offsets}, expected an ascending pair up to "
            f"{size - data_begin}, where the file ends"
        )
    n_bytes = math.prod(shape) * _DTYPES[_DTYPE_NAMES[dtype]].itemsize
    if end - begin != n_bytes:
        raise CheckpointError(
            f"{where}: data_offsets hold {end - begin} bytes, {dtype} of the shape "
            f"{shape} takes {n_bytes}"
        )
    return TensorInfo(_DTYPE_NAMES[dtype], tuple(shape), begin, end)


def _is_size_list(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def write_safetensors(
    file: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Callable[[str], Array],
    metadata: Mapping[str, str],
    *,
    alignment: int = 8,
) -> None:
    """Write tensors of one number format, asking ``read`` for one of them at a time.

    The first begins at a multiple of ``alignment`` bytes, and each where the one before it ends.
    """
    short_names = {name: short for short, name in _DTYPE_NAMES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {
            "dtype": short_names[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name, shape in shapes.items():
        array = read(name)
        if array.shape != shape or array.dtype != _DTYPES[dtype]:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, announced as {dtype} {shape}")
        file.write(np.ascontiguousarray(array).data)
