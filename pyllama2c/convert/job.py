"""One conversion from end to end: open, check, write aside, move into place, tell what was done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pyllama2c import _core
from pyllama2c.arguments import as_path
from pyllama2c.checkpoint import Checkpoint, packed
from pyllama2c.checkpoint.dtypes import DTYPES
from pyllama2c.checkpoint.huggingface import read_json
from pyllama2c.convert.hf_tokenizer import write_hf_tokenizer
from pyllama2c.convert.huggingface import write_hf
from pyllama2c.convert.llama2c import (
    group_size_for,
    write_v0,
    write_v1,
    write_v2,
)
from pyllama2c.convert.open import open_any
from pyllama2c.convert.staging import staged_files
from pyllama2c.errors import ArgumentError, TokenizerError
from pyllama2c.loading import pack
from pyllama2c.sentencepiece_model import SentencePieceModel
from pyllama2c.tokenizer import Tokenizer, find_tokenizer

TARGETS = {
    "v0": "llama2.c v0",
    "v1": "llama2.c v1",
    "v2": "llama2.c v2",
    "hf": "Hugging Face",
    "packed": "pyllama2c packed",
}
_ENDS = "generation_config.json"
# What else a Hugging Face directory holds that belongs to the model.
_HF_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    _ENDS,
)


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        source: the model that was read.
        path: the file or directory that was written.
        target: its format, in words.
        dtype: how its weights are stored.
        files: names of the files written.
        notes: what the user should know: choices made, things missing.
    """

    source: Checkpoint
    path: Path
    target: str
    dtype: str
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str | None = None,
    dtype: str | None = None,
    group_size: int = 64,
    tokenizer: str | Path | None = None,
    force: bool = False,
) -> Conversion:
    """Convert a model, and its tokenizer with it.

    Args:
        source: anything that `open_any` opens.
        destination: a directory for Hugging Face, a file for the other formats. Its folder is
            made if need be. Nothing is left there if the conversion fails.
        to: ``v0``, ``v1``, ``v2``, ``hf`` or ``packed``; None takes ``packed`` for int8, int4 and
            names that end in ``.safetensors``, ``hf`` for a path without a suffix.
        dtype: how to store the weights: ``hf`` has ``float32``, ``float16`` and ``bfloat16``,
            ``packed`` has ``float32``, ``bfloat16``, ``int8`` and ``int4``; None keeps what they
            are. llama2.c's formats leave no choice.
        group_size: elements for each scale of ``v2``. The largest divisor of all rows that is not
            larger is taken, so that llama2.c's ``runq`` reads the file rightly.
        tokenizer: a ``.model``, ``.bin`` or ``tokenizer.json``; None looks beside the model.
        force: replace files that are there.

    Raises:
        CheckpointError: the source cannot be read.
        TokenizerError: ``tokenizer`` cannot be read or does not fit the model.
        ArgumentError: the target cannot hold the model (see `check_llama2c_can_hold`), or the
            arguments do not go together, or files are in the way, or the source itself.
        OSError: writing failed; where the file system says no name, the destination's folder.
        MissingExtraError: reading the source takes torch.
    """
    source, destination = as_path("source", source), as_path("destination", destination)
    to = _target(destination, to, dtype)
    _check_target(destination, to, dtype, force)
    place = Path(os.path.realpath(destination))  # unlike resolve(), takes loops of links
    inside = Path(os.path.realpath(source)) in (place, *place.parents)
    if to == "packed" and inside and destination.exists() and not packed.is_packed(destination):
        raise ArgumentError(
            f"destination is {destination}, the source itself or a part of it: choose another "
            "name, for what is packed cannot be unpacked"
        )
    if type(group_size) is not int or group_size < 1:
        raise ArgumentError(f"group_size is {group_size!r}, expected a whole number from 1 on")
    checkpoint = open_any(source)
    sentencepiece, missing = _find_tokenizer(checkpoint, tokenizer)
    result = Conversion(checkpoint, destination, TARGETS[to], "float32")
    if to == "hf":
        folder = destination
        result.dtype = dtype or (checkpoint.dtype if checkpoint.dtype in DTYPES else "float32")
        companions = _companions(checkpoint) if checkpoint.kind == "Hugging Face" else {}
        if tokenizer is not None:  # another one than lies there; what ends a text stays
            companions = {name: path for name, path in companions.items() if name == _ENDS}
        write = partial(_write_hf, result=result, tokenizer=sentencepiece, companions=companions)
        if _has_tokenizer(companions):
            missing = None
    elif to == "packed":
        folder = destination.parent
        write = partial(_write_packed, result, dtype or "auto", sentencepiece)
    else:
        folder = destination.parent
        write = partial(_write_llama2c, result, to, group_size, sentencepiece)
    with staged_files(folder, force=force) as staging:
        write(staging)
        result.files = sorted(path.name for path in staging.iterdir())
    if missing:
        result.notes.append(f"no tokenizer was written: {missing}")
    return result


def _target(destination: Path, to: str | None, dtype: str | None) -> str:
    if to is None:
        if dtype in ("int8", "int4") or destination.suffix == ".safetensors":
            return "packed"
        if destination.is_dir() or not destination.suffix:
            return "hf"
        raise ArgumentError(
            f"which format {destination} is to have cannot be told from its name: say --to v0 "
            "(for llama2.c's run), v1 (float32), v2 (int8, for llama2.c's runq), hf (a directory) "
            "or packed (for pyllama2c alone)"
        )
    if to not in TARGETS:
        raise ArgumentError(f"to is {to!r}, expected one of {', '.join(TARGETS)}")
    return to


def _check_target(destination: Path, to: str, dtype: str | None, force: bool) -> None:
    stored = {"hf": tuple(DTYPES), "packed": packed.DTYPES, "v2": ("int8",)}.get(to, ("float32",))
    if dtype is not None and dtype not in stored:
        raise ArgumentError(
            f"dtype is {dtype!r}, expected {' or '.join(stored)}, which {TARGETS[to]} can store"
        )
    if to != "hf":
        if destination.is_dir():
            raise ArgumentError(f"{destination} is a directory; {TARGETS[to]} is one file")
        if destination.exists() and not destination.is_file():
            raise ArgumentError(f"{destination} is no regular file, which --force could replace")
        if destination.is_symlink():
            raise ArgumentError(f"{destination} is a symbolic link: name the file that it leads to")
    elif os.path.lexists(destination) and not destination.is_dir():
        raise ArgumentError(f"{destination} is a file; {TARGETS[to]} is a directory")
    for folder in destination.parents:
        if os.path.lexists(folder) and not folder.is_dir():
            raise ArgumentError(f"destination is {destination}, but {folder} is no directory")
    in_the_way = destination / "model.safetensors" if to == "hf" else destination
    if os.path.lexists(in_the_way) and not force:
        raise ArgumentError(f"{in_the_way} exists; use --force to replace it")


def _find_tokenizer(
    checkpoint: Checkpoint, given: str | Path | None
) -> tuple[SentencePieceModel | None, str | None]:
    """The tokenizer to write, or why there is none. One that was asked for has to be right."""
    vocab_size = checkpoint.config.vocab_size
    if given is not None:
        tokenizer = Tokenizer.load(given)
        tokenizer.check_fits(vocab_size)
        return _sentencepiece(tokenizer), None
    # Meta keeps one tokenizer beside the directories of its models.
    places = [checkpoint.path]
    if checkpoint.kind == "Meta":
        places.append(checkpoint.path / "params.json")
        places.append(checkpoint.path.parent)
    try:
        for place in places:
            found = find_tokenizer(place, vocab_size)
            if found is not None:
                return _sentencepiece(found), None
    except TokenizerError as error:
        return None, str(error)
    return None, f"there is none beside {checkpoint.path}; give one with --tokenizer"


def _sentencepiece(tokenizer: Tokenizer) -> SentencePieceModel:
    return SentencePieceModel.from_model(tokenizer.serialized)


def _special_ids(checkpoint: Checkpoint, tokenizer: SentencePieceModel | None) -> Mapping[str, Any]:
    """``bos_token_id`` and its like: as the source has them, else of the tokenizer."""
    ids = {} if tokenizer is None else tokenizer.special_ids
    if checkpoint.kind == "Hugging Face":
        hf = read_json(checkpoint.path / "config.json")
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {**ids, **{key: hf[key] for key in keys if hf.get(key) is not None}}
    if tokenizer is not None:
        return ids
    # Fixed in llama2.c and in Llama 2.
    return {"bos_token_id": 1, "eos_token_id": 2} if checkpoint.config.vocab_size > 2 else {}


def _companions(checkpoint: Checkpoint) -> dict[str, Path]:
    paths = {name: checkpoint.path / name for name in _HF_COMPANIONS}
    return {name: path for name, path in paths.items() if path.exists()}


def _has_tokenizer(companions: Mapping[str, Path]) -> bool:
    # tokenizer_config.json by itself holds no vocabulary.
    return "tokenizer.json" in companions or "tokenizer.model" in companions


def _write_hf(
    staging: Path,
    *,
    result: Conversion,
    tokenizer: SentencePieceModel | None,
    companions: Mapping[str, Path],
) -> None:
    config = result.source.config
    write_hf(staging, result.source, result.dtype, _special_ids(result.source, tokenizer))
    for name, path in companions.items():
        shutil.copyfile(path, staging / name)
    if tokenizer is not None and not _has_tokenizer(companions):
        write_hf_tokenizer(tokenizer, staging, config.max_seq_len)


def _write_packed(
    result: Conversion, dtype: str, tokenizer: SentencePieceModel | None, staging: Path
) -> None:
    weights = pack(result.source, dtype, _core.available_cpus())
    result.dtype = weights.dtype
    with (staging / result.path.name).open("wb") as file:
        packed.write_packed(
            file,
            weights,
            None if tokenizer is None else tokenizer.serialized,
            result.source.bos_id,
            result.source.eos_ids,
        )


def _write_llama2c(
    result: Conversion,
    to: str,
    group_size: int,
    tokenizer: SentencePieceModel | None,
    staging: Path,
) -> None:
    checkpoint = result.source
    writers: dict[str, Callable[..., None]] = {"v0": write_v0, "v1": write_v1, "v2": write_v2}
    options: dict[str, int] = {}
    if to == "v2":
        config = checkpoint.config
        options["group_size"] = group_size_for(config, group_size)
        result.dtype = "int8"
        note = f"group size {options['group_size']}"
        if options["group_size"] != group_size:
            note += (
                f", not {group_size}: the largest that divides rows of {config.dim} "
                f"and {config.hidden_dim}, which llama2.c's runq needs"
            )
        result.notes.append(note)
    with (staging / result.path.name).open("wb") as file:
        writers[to](file, checkpoint, **options)
    if tokenizer is not None:
        (staging / "tokenizer.model").write_bytes(tokenizer.serialized)
        (staging / "tokenizer.bin").write_bytes(tokenizer.to_llama2c())
