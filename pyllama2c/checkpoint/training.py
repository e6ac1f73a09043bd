"""Training checkpoints: ``model.json`` with the sizes beside ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyllama2c.checkpoint.base import (
    Checkpoint,
    LazyTensors,
    check_layers,
    check_shapes,
    tensor_shapes,
)
from pyllama2c.checkpoint.huggingface import read_json
from pyllama2c.checkpoint.safetensors_file import SafetensorsFile
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError

FORMAT = "pyllama2c-training"


def step_directory(directory: Path) -> Path:
    """One step's directory as it is; of a whole run the best one, or else the last."""
    for place in (directory, directory / "best", directory / "last"):
        if (place / "model.json").exists():
            return place
    return directory


def load_training(directory: Path) -> Checkpoint:
    """Open a checkpoint that ``pyllama2c train`` wrote.

    Args:
        directory: one step's directory, or the whole run's, of which ``best`` is taken, or
            ``last`` before the first evaluation.

    Raises:
        CheckpointError: a file is missing, of another format, or its tensors do not fit its sizes.
    """
    directory = step_directory(directory)
    path = directory / "model.json"
    content = read_json(path)
    if content.get("format") != FORMAT or content.get("version") != 1:
        raise CheckpointError(
            f"{path}: format is {content.get('format')!r} version {content.get('version')!r}, "
            f"expected {FORMAT!r} version 1"
        )
    config = _read_config(path, content.get("config"))
    file = SafetensorsFile(directory / "model.safetensors")
    check_layers(path, config.n_layers, len(file.tensors))
    shapes = tensor_shapes(config)
    check_shapes(file.path, shapes, file.shapes)
    readers = {name: (lambda name=name: file.read(name)) for name in shapes}
    dtypes = {info.dtype for info in file.tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return Checkpoint(config, LazyTensors(readers), "training checkpoint", dtype, directory)


def _read_config(path: Path, values: Any) -> ModelConfig:
    try:
        return ModelConfig(**values)
    except (ArgumentError, TypeError) as error:
        raise CheckpointError(f"{path}: config: {error}") from None
