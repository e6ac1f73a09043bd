"""Fixtures that tests of every subject use."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import models
import pytest
import vocabularies
from hypothesis import settings

from pyllama2c.config import ModelConfig

# A slow moment of the machine is no failure; and runs that repeat are easier to trust.
settings.register_profile("pyllama2c", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("pyllama2c")


# A shell that starts something in the background may have it ignore Ctrl-C, and so would the
# programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Python looks for modules in the current folder: the sources must not hide the installation.

    The programs that tests start would otherwise find them there, without the compiled module.
    """
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and oracles that may lie beside the repository.

    PYLLAMA2C_SHARED names it where it lies elsewhere.
    """
    named = os.environ.get("PYLLAMA2C_SHARED")
    folders = [Path(named)] if named else [p / "shared" for p in Path(__file__).resolve().parents]
    for folder in folders:
        if (folder / "oracle").is_dir():
            return folder
    pytest.skip("no folder 'shared' with real checkpoints beside the repository")


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that speaks, its tokenizer.model next to it."""
    folder = tmp_path_factory.mktemp("speaker")
    vocabulary = vocabularies.train("byte fallback")
    (folder / "tokenizer.model").write_bytes(vocabulary)
    size = len(vocabularies.pieces(vocabulary))
    config = ModelConfig(64, 80, 2, 4, 2, size, 96)
    return models.write_v0(folder / "model.bin", config, models.random_tensors(config))


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes long, and never ends a text: all its weights are zero."""
    folder = tmp_path_factory.mktemp("talkative")
    vocabulary = vocabularies.train("byte fallback")
    (folder / "tokenizer.model").write_bytes(vocabulary)
    size = len(vocabularies.pieces(vocabulary))
    config = ModelConfig(256, 1024, 8, 4, 4, size, 65536)
    tensors = {name: 0 * array for name, array in models.random_tensors(config).items()}
    return models.write_v0(folder / "model.bin", config, tensors)


@dataclass
class Result:
    """What a command did."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the command line in this process: ``cli("run", model, "-n", 5, stdin="text")``."""

    def run(*arguments: object, stdin: str = "") -> Result:
        from pyllama2c.cli import main

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        stdout, stderr = capfdbinary.readouterr()
        assert isinstance(exit_info.value.code, int)
        return Result(exit_info.value.code, stdout.decode(), stderr.decode())

    return run
