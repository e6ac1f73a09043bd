"""``pyllama2c train``: train a model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pyllama2c.cli.common import PATH
from pyllama2c.errors import MissingExtraError


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--out",
    type=PATH,
    help="Directory of the run.  [default: runs/NAME of the config]",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, if there is one.")
def train(config: str, overrides: tuple[str, ...], out: Path | None, resume: bool) -> None:
    """Train a model as CONFIG says: a TOML file, or the name of one that is built in.

    Built in are tonghua-3m (the default model), stories-260k, stories-15m, tinystories-zh-93m.
    Single settings may follow: batch_size=8 train.device=cuda data.train=my.npy

    On several GPUs or machines: torchrun --nproc-per-node=8 -m pyllama2c train CONFIG
    """
    from pyllama2c.train.config import load_config

    loaded = load_config(config, overrides)
    try:
        from pyllama2c.train.trainer import train as train_model
    except ImportError as error:
        raise MissingExtraError(
            f'training needs {error.name}: pip install "pyllama2c[train]"'
        ) from error
    result = train_model(
        loaded, out or Path("runs") / Path(config).stem, resume=resume, progress=True
    )
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started
        click.echo(
            f"{result.run}: {result.steps:,} steps, validation loss {result.val_loss:.4f}, "
            f"best {result.best_val_loss:.4f}"
        )
