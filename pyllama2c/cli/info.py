"""``pyllama2c info``: what is in a model file and how it would run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllama2c.cli.common import (
    dtype_option,
    kv_dtype_option,
    model_argument,
    open_model,
    show,
    threads_option,
    tokenizer_option,
)

if TYPE_CHECKING:
    from pyllama2c.model import DType, KvDType
    from pyllama2c.tokenizer import Tokenizer


@click.command()
@model_argument
@tokenizer_option
@dtype_option
@kv_dtype_option
@threads_option
def info(
    model: Path | None, tokenizer: Path | None, dtype: DType, kv_dtype: KvDType, threads: int | None
) -> None:
    """Show what MODEL is: sizes, formats, tokenizer, memory, and how it would run here.

    Without MODEL it is the one that comes with the package.
    """
    with open_model(model, tokenizer, threads, dtype, kv_dtype) as loaded:
        config, about, found = loaded.config, loaded.info(), loaded.tokenizer
        no_tokenizer = loaded._no_tokenizer
    kv = about["kv_bytes_per_token"]
    heads = f"{config.n_heads} (size {config.head_size}), {config.n_kv_heads} for keys and values"
    file_bytes = about["file_bytes"]
    openmp = "with OpenMP" if about["openmp"] else "built without OpenMP, one thread only"
    rows = {
        "model": about["path"],
        "format": f"{about['format']}, {about['stored_dtype']}",
        "file size": _size(file_bytes) if file_bytes is not None else "(a directory)",
        "parameters": f"{config.n_params:,}",
        "dim": config.dim,
        "hidden_dim": config.hidden_dim,
        "n_layers": config.n_layers,
        "heads": heads,
        "vocab_size": f"{config.vocab_size} ({_embeddings(config.tied_embeddings)})",
        "context": f"{config.max_seq_len} tokens",
        "rope_theta": f"{config.rope_theta:g}",
        "norm_eps": f"{config.norm_eps:g}",
        "tokenizer": _tokenizer(found) if found else f"none: {no_tokenizer}",
        "weights": f"{_size(about['weights_bytes'])}, {_place(about['mapped'])}",
        "KV cache": f"{_size(kv)} per token, {_size(kv * config.max_seq_len)} per full context",
        "ISA": about["isa"],
        "threads": f"{about['n_threads']} ({openmp})",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        show(f"{name:{width}}  {value}\n")


def _tokenizer(found: Tokenizer) -> str:
    return f"{found.path} ({found.kind}, {found.vocab_size} pieces)"


def _embeddings(tied: bool) -> str:
    return "embeddings tied to the classifier" if tied else "classifier of its own"


def _place(mapped: bool) -> str:
    return "mapped from the file, which processes share" if mapped else "in memory"


def _size(n_bytes: int) -> str:
    """Bytes for people: "1.0 MiB"; exact below a KiB."""
    size = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
