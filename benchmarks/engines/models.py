"""The model that all engines run, and the Hugging Face directory they convert from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from make_model import make_model

from engines.base import Source
from pyllama2c.config import ModelConfig
from pyllama2c.convert import convert

SPECIAL = ("<unk>", "<s>", "</s>")


@contextmanager
def models_folder(chosen: Path | None, smoke: bool) -> Iterator[Path]:
    """Where models are kept: as chosen, or among the system's temporary files."""
    if chosen is None and smoke:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield (chosen or Path(tempfile.gettempdir()) / "pyllama2c-benchmarks").absolute()


def prepare_source(folder: Path, config: ModelConfig) -> Source:
    """Write the checkpoint and its directory into a folder, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"llama-{config.dim}x{config.n_layers}-{config.vocab_size}"
    source = Source(folder / f"{stem}.bin", folder / f"{stem}-hf")
    if not source.checkpoint.exists():
        make_model(source.checkpoint, config)
    if not (source.hf / "tokenizer.json").exists():
        convert(source.checkpoint, source.hf, to="hf", force=True)
        write_tokenizer(source.hf, config)
    return source


def write_tokenizer(directory: Path, config: ModelConfig) -> None:
    """Write a tokenizer that only serves to exist: converters ask for one, the benchmarks use ids.

    Special tokens, bytes, and one character for each further id.
    """
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [chr(0x4E00 + i) for i in range(config.vocab_size - len(tokens))]
    vocabulary = {token: i for i, token in enumerate(tokens[: config.vocab_size])}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                **{"id": i, "content": token, "special": True, "single_word": False},
                **{"lstrip": False, "rstrip": False, "normalized": False},
            }
            for i, token in enumerate(SPECIAL)
        ],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            **{"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
            **{"fuse_unk": True, "byte_fallback": True},
        },
    }
    settings = {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_seq_len},
        **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
