"""Opening whatever can be converted, told apart by its content."""

from __future__ import annotations

from pathlib import Path

from pyllama2c.checkpoint import Checkpoint, open_checkpoint
from pyllama2c.errors import CheckpointError
from pyllama2c.loading import pickled_kind


def open_any(path: str | Path) -> Checkpoint:
    """Open a model: all that `open_checkpoint` reads, and with torch what PyTorch pickled.

    Args:
        path: a llama2.c file or ``ckpt.pt``, or a directory of Hugging Face, of Meta's original
            files or of ``pyllama2c train``.

    Raises:
        CheckpointError: there is no such model, or it cannot be used; the message says why.
        MissingExtraError: it takes torch to read this, and torch is not installed.
    """
    path = Path(path)
    kind = pickled_kind(path)
    if kind is not None:
        from pyllama2c.convert import torch_files

        if kind == "Meta":
            return torch_files.load_meta(path)
        if kind == "Hugging Face":
            return torch_files.load_hf_bin(path)
        return torch_files.load_llama2c_pt(path)
    if (path / "ckpt.pt").exists() and not any(path.glob("*.safetensors*")):
        raise CheckpointError(f"{path}: name the file itself, {path / 'ckpt.pt'}")
    return open_checkpoint(path)
