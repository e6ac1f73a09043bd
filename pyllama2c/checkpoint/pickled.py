"""Telling what PyTorch pickled, without torch: `pyllama2c.convert` reads it, `Model` does not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def pickled_kind(path: Path) -> Literal["llama2.c", "Meta", "Hugging Face"] | None:
    """Whose PyTorch files a path names, if any."""
    if path.is_file():
        return "llama2.c" if _is_pickled(path) else None
    if not path.is_dir():
        return None
    if (path / "params.json").exists() and any(path.glob("consolidated.*.pth")):
        return "Meta"
    if any(path.glob("pytorch_model*.bin*")) and not any(path.glob("*.safetensors*")):
        return "Hugging Face"
    return None


def _is_pickled(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False  # whoever reads it will tell why
    # A zip archive since PyTorch 1.6, a plain pickle before.
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and path.suffix in (".pt", ".pth"))
