"""Reading model files of every kind that the library itself understands."""

from __future__ import annotations

from pathlib import Path

from pyllama2c.checkpoint.base import Checkpoint, tensor_shapes
from pyllama2c.checkpoint.dtypes import cast, to_float32
from pyllama2c.errors import CheckpointError
from pyllama2c.loading import is_safetensors

__all__ = [
    "Checkpoint",
    "cast",
    "open_checkpoint",
    "tensor_shapes",
    "to_float32",
]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model, telling what it is by its content.

    Args:
        path: a llama2.c file (v0, v1, v2), a Hugging Face directory, or a directory of
            ``pyllama2c train``.

    Raises:
        CheckpointError: there is no such path, or what is there cannot be used; the message says
            what is wrong.
    """
    # What few need is imported when needed: a packed file loads in less time than these take.
    path = Path(path)
    if path.is_file():
        if is_safetensors(path):
            from pyllama2c.checkpoint.packed import read_packed

            read_packed(path)  # tells what it is, if not packed
            raise CheckpointError(
                f"{path}: weights that are packed cannot be unpacked: name what they were made of"
            )
        from pyllama2c.checkpoint.llama2c import load_llama2c

        return load_llama2c(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or directory")
    from pyllama2c.checkpoint.huggingface import load_hf
    from pyllama2c.checkpoint.training import load_training, step_directory

    if (path / "config.json").exists():
        return load_hf(path)
    if (step_directory(path) / "model.json").exists():
        return load_training(path)
    raise CheckpointError(
        f"{path}: neither config.json (Hugging Face) nor model.json (training) is in this directory"
    )
