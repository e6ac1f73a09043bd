"""What the subcommands that run a model share."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pyllama2c.model import DType, KvDType, Model
    from pyllama2c.sampling import SamplingParams
    from pyllama2c.tokenizer import Tokenizer


class _Path(click.Path):
    """Not the current directory where a shell's variable is empty."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        if not os.fspath(value):
            self.fail("The path is empty.", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

model_argument = click.argument("model", required=False, type=PATH)
tokenizer_option = click.option(
    "-z",
    "--tokenizer",
    type=PATH,
    help="A .model, .bin (llama2.c) or tokenizer.json file.  [default: the one next to the model]",
)
threads_option = click.option(
    "--threads", type=int, help="Threads to compute with.  [default: the CPUs there are]"
)

dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "int8", "int4"]),
    default="auto",
    show_default=True,
    help="How to keep the weights; auto keeps what the file stores.",
)
kv_dtype_option = click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="How to keep keys and values.",
)


def open_model(
    path: Path | None,
    tokenizer: Path | None,
    threads: int | None,
    dtype: DType = "auto",
    kv_dtype: KvDType = "float32",
) -> Model:
    """Load the model that the command line names, or the one that comes with the package."""
    from pyllama2c.model import Model

    return Model(path, tokenizer=tokenizer, n_threads=threads, dtype=dtype, kv_dtype=kv_dtype)


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer, which commands that read and write text cannot do without."""
    if model.tokenizer is None:
        raise click.UsageError(f"{model._no_tokenizer}: name one with -z.")
    return model.tokenizer


def with_seed(params: SamplingParams) -> SamplingParams:
    """The parameters with a seed: where they have none, a random one, told on stderr."""
    if params.seed is not None:
        return params
    params = params.replace(seed=secrets.randbits(32))
    if params.temperature > 0:
        note(f"seed: {params.seed}")
    return params


def show(text: str) -> None:
    """Write text to stdout at once, as UTF-8 whatever the locale says."""
    if sys.stdout is None:  # so it is if whoever started us has closed it
        raise click.ClickException("stdout is closed, so there is nowhere to write to")
    # The name of a file may hold bytes that are no UTF-8; they come out as they are.
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Write a line to stderr."""
    click.echo(text, err=True)
