"""Fixtures that tests of every subject use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and oracles that may lie beside the repository."""
    for parent in Path(__file__).resolve().parents:
        folder = parent / "shared"
        if (folder / "oracle").is_dir():
            return folder
    pytest.skip("no folder 'shared' with real checkpoints beside the repository")
