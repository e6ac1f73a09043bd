"""Weights from whatever a path names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pyllama2c import _core
from pyllama2c.errors import ArgumentError, CheckpointError, shown

if TYPE_CHECKING:
    from pyllama2c.checkpoint import Checkpoint


class Loaded(NamedTuple):
    """Weights, what they came from in words, and the tokenizer that came with them."""

    weights: _core.Weights
    format: str
    stored_dtype: str
    tokenizer: bytes | None = None
    """A serialized SentencePiece model."""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    """The special tokens, if the file says them."""


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like one: with a header's length and a brace."""
    start = _start(path)
    # llama2.c's files have their second number in the upper half of this length.
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def pickled_kind(path: Path) -> Literal["llama2.c", "Meta", "Hugging Face"] | None:
    """Whose PyTorch files a path names, if any: `pyllama2c.convert` reads them, `Model` not."""
    if path.is_file():
        return "llama2.c" if _is_pickled(path) else None
    if not path.is_dir():
        return None
    if (path / "params.json").exists() and any(path.glob("consolidated.*.pth")):
        return "Meta"
    if any(path.glob("pytorch_model*.bin*")) and not any(path.glob("*.safetensors*")):
        return "Hugging Face"
    return None


def _is_pickled(path: Path) -> bool:
    start = _start(path)
    # A zip archive since PyTorch 1.6, a plain pickle before.
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and path.suffix in (".pt", ".pth"))


def _start(path: Path) -> bytes:
    """Return a file's first 9 bytes; none if it cannot be read: whoever reads on will tell why."""
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError:
        return b""


def load_weights(path: Path, dtype: str, mmap: bool | None, n_threads: int) -> Loaded:
    """Load a model's weights, telling what it is by its content; see `Model` for the arguments.

    Raises:
        CheckpointError: there is no such path, or what is there cannot be used.
        ArgumentError: dtype or mmap ask for what the model does not store.
    """
    if not isinstance(dtype, str):  # as numpy's and PyTorch's types are not
        raise ArgumentError(
            f"dtype is {shown(dtype)}, expected auto, float32, bfloat16, int8 or int4"
        )
    if path.is_file() and is_safetensors(path):
        return _load_packed(path, dtype, mmap, n_threads)
    if (kind := pickled_kind(path)) is not None:
        raise CheckpointError(
            f"{path}: weights of {kind} that PyTorch pickled; "
            f"convert it first: pyllama2c convert {path} DIR"
        )
    if mmap:
        raise ArgumentError(
            f"mmap is true, but {path} stores no packed weights that could be used where they "
            "lie: pack it with `pyllama2c convert`"
        )
    if path.is_dir():
        from pyllama2c.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(path)
        return Loaded(
            pack(checkpoint, dtype, n_threads),
            checkpoint.kind,
            checkpoint.dtype,
            bos_id=checkpoint.bos_id,
            eos_ids=checkpoint.eos_ids,
        )
    weights, about = _core.Weights.from_file(os.fspath(path), dtype, n_threads)
    stored = f"int8 (groups of {about['group_size']})" if about["group_size"] else "float32"
    return Loaded(weights, f"llama2.c v{about['version']}", stored)


def pack(checkpoint: Checkpoint, dtype: str, n_threads: int) -> _core.Weights:
    """Pack the weights of an opened model, with the bits that loading it by its path gives."""
    if checkpoint.kind.startswith("llama2.c v"):  # whose int8 values are taken as they are
        return _core.Weights.from_file(os.fspath(checkpoint.path), dtype, n_threads)[0]
    fields = dataclasses.asdict(checkpoint.config)
    try:
        return _core.Weights.from_tensors(fields, dict(checkpoint.tensors), dtype, n_threads)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _load_packed(path: Path, dtype: str, mmap: bool | None, n_threads: int) -> Loaded:
    from pyllama2c.checkpoint.packed import map_packed, read_packed

    packed = read_packed(path)
    if dtype not in ("auto", packed.dtype):
        raise ArgumentError(
            f"dtype is {dtype!r}, but {path} stores packed {packed.dtype}: "
            f"expected auto or {packed.dtype}, or another file"
        )
    weights = map_packed(packed, copy=mmap is False, n_threads=n_threads)
    return Loaded(
        weights,
        "pyllama2c packed",
        packed.dtype,
        packed.tokenizer,
        packed.bos_id,
        packed.eos_ids,
    )
