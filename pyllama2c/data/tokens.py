"""Token files: the tokens of a corpus as one memory-mapped NumPy array, and a note of what it is.

``NAME.npy`` is a one-dimensional uint16 or uint32 array in NumPy's own format, each story led by
BOS. ``NAME.npy.json`` beside it says which vocabulary the numbers belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama2c.data.files import atomic_write
from pyllama2c.errors import DataError

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenInfo:
    """What a token file holds."""

    vocab_size: int
    bos_id: int
    tokens: int
    stories: int
    characters: int
    tokenizer_sha256: str


def token_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """Return the smallest type that holds every id of a vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def sha256(path: str | Path) -> str:
    """Return the hash by which a token file knows its tokenizer."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def as_tokens(ids: list[int], vocab_size: int) -> Tokens:
    """Convert ids to the type of a token file, refusing any that is not in the vocabulary."""
    wide = np.asarray(ids, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= vocab_size):
        bad = int(wide[(wide < 0) | (wide >= vocab_size)][0])
        raise DataError(f"token id {bad} is not in the vocabulary of {vocab_size}")
    return wide.astype(token_dtype(vocab_size))


def note_path(path: str | Path) -> Path:
    """Return where a token file's note is: ``train.npy.json``, for ``train.json`` is a corpus."""
    return Path(f"{path}.json")


def write_tokens(path: Path, parts: Iterable[Path], info: TokenInfo) -> None:
    """Join arrays saved as ``.npy`` files into the token file ``path``, one after the other."""
    joined = np.lib.format.header_data_from_array_1_0(np.empty(0, token_dtype(info.vocab_size)))
    joined["shape"] = (info.tokens,)
    written = 0
    with atomic_write(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, joined)
        for part in parts:
            array = np.load(part)
            written += array.size
            file.write(array.tobytes())
        if written != info.tokens:
            raise DataError(f"{path}: the parts hold {written} tokens, expected {info.tokens}")
    with atomic_write(note_path(path)) as file:
        json.dump(asdict(info), file, indent=2)


def open_tokens(path: str | Path) -> tuple[Tokens, TokenInfo]:
    """Map a token file; nothing is read before it is used.

    Raises:
        DataError: a file is missing, truncated, or does not agree with its note.
    """
    path = Path(path)
    try:
        info = TokenInfo(**json.loads(note_path(path).read_text(encoding="utf-8")))
        array: Tokens = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: no such file; `pyllama2c data tokenize` makes it"
        ) from None
    except (ValueError, TypeError, EOFError) as error:
        raise DataError(f"{path}: not a token file ({error})") from error
    expected = token_dtype(info.vocab_size)
    if array.dtype != expected or array.shape != (info.tokens,):
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}, but the note beside it says "
            f"{np.dtype(expected)} of shape ({info.tokens},)"
        )
    return array, info
