"""The command line's errors: one line on stderr, status 2, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import vocabularies

import pyllama2c

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "MODEL", "-t", "-1"], "temperature is -1"),
        (["run", "MODEL", "--dtype", "int5"], "'int5' is not one of"),
        (["run", "MODEL", "-t", "nan"], "temperature is nan"),
        (["run", "MODEL", "-t", "hot"], "'hot' is not a valid float"),
        (["run", "MODEL", "-p", "1.5"], "top_p is 1.5"),
        (["run", "MODEL", "-s", "-1"], "seed is -1"),
        (["run", "MODEL", "-s", str(2**64)], f"seed is {2**64}"),
        (["run", "MODEL", "-n", "-1"], "-1 is not in the range"),
        (["run", "MODEL", "-m", "sing"], "'sing' is not one of"),
        (["run", "MODEL", "--threads", "0"], "n_threads is 0"),
        (["run", "MODEL", "-i", "\udcff"], "lone surrogate"),
        (["run", "MODEL", "-z", "/no/such.model"], "/no/such.model: cannot read the tokenizer"),
        (["run", "MODEL", "-z", "MODEL"], "piece 1: length"),
        (["run", "MODEL", "-x"], "No such option"),
        (["run", "MODEL", "MODEL"], "unexpected extra argument"),
        (["run", "/no/such/model.bin"], "/no/such/model.bin"),
        (["run", ""], "The path is empty"),
        (["convert", "MODEL", ""], "The path is empty"),
        (["info", "/dev/null"], "/dev/null"),
        (["dance"], "No such command"),
    ],
)
def test_one_line_and_status_2(cli: Cli, speaker: Path, arguments: list[str], message: str) -> None:
    result = cli(*[speaker if argument == "MODEL" else argument for argument in arguments])
    assert result.status == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_tokenizer_of_another_size(cli: Cli, speaker: Path, tmp_path: Path) -> None:
    (tmp_path / "other.model").write_bytes(vocabularies.train("default"))
    result = cli("run", speaker, "-z", tmp_path / "other.model")
    assert result.status == 2
    assert "180 pieces" in result.stderr
    assert "420" in result.stderr


def test_no_tokenizer(cli: Cli, tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    for mode in ("generate", "chat"):
        result = cli("run", path, "-m", mode)
        assert result.status == 2
        assert "name one with -z" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_bug_is_one_line_too(cli: Cli, speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("pyllama2c.model.Model.stream", broken)
    result = cli("run", speaker, "-s", 1)
    assert result.status == 2
    assert len(result.stderr.splitlines()) == 1
    assert "KeyError" in result.stderr
    monkeypatch.setenv("PYLLAMA2C_TRACEBACK", "1")
    assert "Traceback" in cli("run", speaker, "-s", 1).stderr


def test_help_and_version(cli: Cli) -> None:
    for arguments in (["--help"], ["-h"], ["run", "--help"], ["info", "-h"]):
        result = cli(*arguments)
        assert result.status == 0
        assert result.stdout.startswith("Usage: pyllama2c")
    assert pyllama2c.__version__ in cli("--version").stdout
    nothing = cli()
    assert nothing.status == 2
    assert "Commands:" in nothing.stderr
