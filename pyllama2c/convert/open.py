"""Opening whatever can be converted, told apart by its content."""

from __future__ import annotations

from pathlib import Path

from pyllama2c.checkpoint import Checkpoint, open_checkpoint
from pyllama2c.errors import CheckpointError


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
    if path.is_file() and _is_pickled(path):
        from pyllama2c.convert.torch_files import load_llama2c_pt

        return load_llama2c_pt(path)
    if path.is_dir():
        if (path / "params.json").exists() and any(path.glob("consolidated.*.pth")):
            from pyllama2c.convert.torch_files import load_meta

            return load_meta(path)
        has_safetensors = any(path.glob("*.safetensors*"))
        if not has_safetensors and any(path.glob("pytorch_model*.bin*")):
            from pyllama2c.convert.torch_files import load_hf_bin

            return load_hf_bin(path)
        if not has_safetensors and (path / "ckpt.pt").exists():
            raise CheckpointError(f"{path}: name the file itself, {path / 'ckpt.pt'}")
    return open_checkpoint(path)


def _is_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    # A zip archive since PyTorch 1.6, a plain pickle before.
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and path.suffix in (".pt", ".pth"))
