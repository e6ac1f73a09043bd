"""Packed files: weights as the kernels read them, ready to be mapped, and the tokenizer with them.

The container is safetensors with two tensors of bytes, ``weights`` and ``tokenizer``; what the
weights are, the metadata says. ``docs/formats.md`` describes the format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyllama2c import _core
from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.checkpoint.safetensors_file import WEIGHTS, SafetensorsFile, write_safetensors
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError, shown

FORMAT = "pyllama2c-packed"
DTYPES = ("float32", "bfloat16", "int8", "int4")
_PAGE = 4096  # the weights begin at a multiple of it in the file, and so in memory


@dataclass(frozen=True)
class PackedFile:
    """What a packed file holds.

    Attributes:
        path: the file.
        config: the model's sizes.
        dtype: how the weights are packed, one of `DTYPES`.
        group_size: int8 of a llama2.c v2 file: its groups, where they were kept; else 0.
        begin: where the packed weights begin, in bytes from the start of the file.
        size: how many bytes they are.
        tokenizer: a serialized SentencePiece model, or None.
        bos_id: the token that begins a text, if the source said it.
        eos_ids: the tokens that end one, if the source said it.
    """

    path: Path
    config: ModelConfig
    dtype: str
    group_size: int
    begin: int
    size: int
    tokenizer: bytes | None
    bos_id: int | None
    eos_ids: tuple[int, ...]


def _open(path: Path) -> SafetensorsFile:
    return SafetensorsFile(path, (*WEIGHTS, "U8"))  # other kinds of files too: to tell them apart


def is_packed(path: Path) -> bool:
    """Whether a file is a packed one, of any version."""
    try:
        return _open(path).metadata.get("format") == FORMAT
    except CheckpointError:
        return False


def read_packed(path: Path) -> PackedFile:
    """Read what a packed file holds; its weights stay where they are.

    Raises:
        CheckpointError: it is damaged, no packed file, or of another version; names the field.
    """
    file = _open(path)
    metadata = file.metadata

    def field(name: str) -> str:
        if name not in metadata:
            raise CheckpointError(f"{path}: {name} is missing from the metadata")
        return metadata[name]

    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}; "
            "other safetensors files are loaded by the name of their directory"
        )
    if field("version") != str(_core.PACKING_VERSION):
        raise CheckpointError(
            f"{path}: version is {field('version')!r}, this pyllama2c reads "
            f"{str(_core.PACKING_VERSION)!r}: pack the model anew"
        )
    if field("dtype") not in DTYPES:
        raise CheckpointError(
            f"{path}: dtype is {field('dtype')!r}, expected one of {', '.join(DTYPES)}"
        )
    config = _config(path, field("config"))
    group_size = field("group_size")
    if not (group_size.isascii() and group_size.isdigit() and len(group_size) < 9):
        raise CheckpointError(f"{path}: group_size is {group_size!r:.80}, expected a number")
    bos_ids, eos_ids = (_token_ids(path, metadata, name) for name in ("bos_id", "eos_ids"))
    if len(bos_ids) > 1:
        raise CheckpointError(f"{path}: bos_id is {metadata['bos_id']!r:.80}, expected one token")
    if unknown := set(file.tensors) - {"weights", "tokenizer"}:
        raise CheckpointError(f"{path}: tensor {min(unknown)!r} has no place in a packed file")
    if "weights" not in file.tensors:
        raise CheckpointError(f"{path}: tensor 'weights' is missing")
    for name, info in file.tensors.items():
        if info.dtype != "uint8":
            raise CheckpointError(f"{path}: tensor {name!r}: dtype is {info.dtype}, expected U8")
    weights = file.tensors["weights"]
    return PackedFile(
        path=path,
        config=config,
        dtype=metadata["dtype"],
        group_size=int(group_size),
        begin=weights.begin,
        size=weights.end - weights.begin,
        tokenizer=file.read("tokenizer").tobytes() if "tokenizer" in file.tensors else None,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=eos_ids,
    )


def _config(path: Path, text: str) -> ModelConfig:
    """All fields of a ModelConfig, as JSON."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"it is {shown(values)}, expected an object")
        for name in sorted({f.name for f in dataclasses.fields(ModelConfig)} ^ values.keys()):
            raise ValueError(f"{name} {'has no place there' if name in values else 'is missing'}")
        return ModelConfig(**values)
    except (ArgumentError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: config: {error}") from None


def _token_ids(path: Path, metadata: Mapping[str, str], name: str) -> tuple[int, ...]:
    """Token ids with spaces between them; none where the metadata has no such field."""
    if name not in metadata:
        return ()
    words = metadata[name].split()
    numbers = all(word.isascii() and word.isdigit() and len(word) < 11 for word in words)
    # Any that a Hugging Face directory may say, in its vocabulary or not.
    if not words or not numbers or any(int(word) >= 2**31 for word in words):
        raise CheckpointError(f"{path}: {name} is {metadata[name]!r:.80}, expected token ids")
    return tuple(map(int, words))


def map_packed(packed: PackedFile, *, copy: bool, n_threads: int) -> _core.Weights:
    """Use the weights of a packed file where they lie, or (``copy``) in memory of their own.

    Raises:
        CheckpointError: they are not of the size that the config makes, or not aligned.
    """
    try:
        return _core.Weights.from_image(
            str(packed.path),
            begin=packed.begin,
            size=packed.size,
            config=dataclasses.asdict(packed.config),
            dtype=packed.dtype,
            group_size=packed.group_size,
            copy=copy,
            n_threads=n_threads,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{packed.path}: {error}") from None


def write_packed(
    file: BinaryIO,
    weights: _core.Weights,
    tokenizer: bytes | None,
    bos_id: int | None = None,
    eos_ids: Sequence[int] = (),
) -> None:
    """Write weights as they are packed, and a serialized SentencePiece model with them.

    The special tokens are those that the source says by itself, as in a `Checkpoint`.
    """
    tensors: dict[str, Array] = {"weights": weights.image}
    if tokenizer is not None:
        tensors["tokenizer"] = np.frombuffer(tokenizer, np.uint8)
    metadata = {
        "format": FORMAT,
        "version": str(_core.PACKING_VERSION),
        "dtype": weights.dtype,
        "group_size": str(weights.group_size),
        "config": json.dumps(weights.config),
    }
    if bos_id is not None:
        metadata["bos_id"] = str(bos_id)
    if eos_ids:
        metadata["eos_ids"] = " ".join(map(str, eos_ids))
    shapes = {name: array.shape for name, array in tensors.items()}
    write_safetensors(file, shapes, "uint8", tensors.__getitem__, metadata, alignment=_PAGE)
