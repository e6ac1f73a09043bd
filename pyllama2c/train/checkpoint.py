"""Checkpoints that are complete or not there, whenever the process is killed.

    RUN/step-00001000/     model.json, model.safetensors, tokenizer.model, trainer.pt
    RUN/last, RUN/best     symbolic links to such directories

A directory is written under a name that begins with a dot, flushed to the disk and renamed; the
links are replaced by renaming too. The weights have Meta's names and layout and are float32.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyllama2c.checkpoint.training import FORMAT
from pyllama2c.config import ModelConfig
from pyllama2c.data.files import fsync_directory
from pyllama2c.data.tokens import sha256
from pyllama2c.errors import CheckpointError


def save_checkpoint(
    run: Path,
    step: int,
    *,
    config: ModelConfig,
    weights: dict[str, Tensor],
    trainer: dict[str, Any],
    tokenizer: Path,
    val_loss: float | None,
    best: bool,
) -> Path:
    """Write a checkpoint, make it the last one (and the best one), and drop what is neither.

    Args:
        run: the directory of the run.
        step: how many steps have been taken.
        config: the model's sizes.
        weights: by Meta's names.
        trainer: whatever resuming needs besides; for `torch.save`.
        tokenizer: the ``tokenizer.model`` to keep with the weights.
        val_loss: of these weights, if known.
        best: whether it is the lowest so far.
    """
    name = f"step-{step:08}"
    partial = run / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = {
        "format": FORMAT,
        "version": 1,
        "config": asdict(config),
        "step": step,
        "val_loss": val_loss,
    }
    (partial / "model.json").write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
    whole = {key: tensor.detach().float().cpu().contiguous() for key, tensor in weights.items()}
    save_file(whole, partial / "model.safetensors")
    shutil.copyfile(tokenizer, partial / "tokenizer.model")
    torch.save(trainer, partial / "trainer.pt")
    for file in partial.iterdir():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    fsync_directory(partial)
    shutil.rmtree(run / name, ignore_errors=True)  # of a run that was resumed from further back
    partial.rename(run / name)
    fsync_directory(run)
    # Whoever is killed between the two goes on from the former last and comes here again; the
    # other way round, the best would be lost.
    if best:
        _point(run / "best", name)
    _point(run / "last", name)
    _drop_others(run)
    return run / name


def load_checkpoint(
    path: Path, config: ModelConfig, tokenizer: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and the trainer's state of a checkpoint directory.

    Raises:
        CheckpointError: it is damaged, of a model of other sizes than ``config``, or was trained
            with another tokenizer than ``tokenizer``.
    """
    try:
        model = json.loads((path / "model.json").read_text(encoding="utf-8"))
        weights = load_file(path / "model.safetensors")
        trainer = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
        stored = dict(model["config"])
        same_tokenizer = sha256(path / "tokenizer.model") == sha256(tokenizer)
    except (
        *(OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        raise CheckpointError(f"{path}: not a training checkpoint ({error!r:.200})") from error
    if not same_tokenizer:
        raise CheckpointError(f"{path}: was trained with another tokenizer than {tokenizer}")
    for key, wanted in asdict(config).items():
        if stored.get(key) != wanted:
            raise CheckpointError(
                f"{path}: {key} is {stored.get(key)} there and {wanted} in the configuration"
            )
    return weights, trainer


def _point(link: Path, target: str) -> None:
    """Make a symbolic link, or change where it points, in one step."""
    fresh = link.with_name(f".{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    fsync_directory(link.parent)


def _drop_others(run: Path) -> None:
    kept = {(run / name).resolve() for name in ("last", "best")}
    for directory in (*run.glob("step-*"), *run.glob(".step-*.partial")):
        if directory.resolve() not in kept:
            shutil.rmtree(directory, ignore_errors=True)
