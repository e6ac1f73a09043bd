"""``pyllama2c info``: the facts about a model file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

from pyllama2c import ModelConfig, _core

Cli = Callable[..., Any]


def rows(stdout: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in stdout.splitlines())


def test_every_fact(cli: Cli, speaker: Path) -> None:
    result = cli("info", speaker, "--threads", 1)
    assert (result.status, result.stderr) == (0, "")
    shown = rows(result.stdout)
    assert shown["model"] == str(speaker)
    assert shown["format"] == "llama2.c v0, float32"
    assert shown["file size"] == f"{speaker.stat().st_size / 1024:.1f} KiB"
    config = ModelConfig(64, 80, 2, 4, 2, 420, 96)
    assert shown["parameters"] == f"{config.n_params:,}"
    assert shown["dim"] == "64"
    assert shown["hidden_dim"] == "80"
    assert shown["n_layers"] == "2"
    assert shown["heads"] == "4 (size 16), 2 for keys and values"
    assert shown["vocab_size"] == "420 (embeddings tied to the classifier)"
    assert shown["context"] == "96 tokens"
    assert "tokenizer.model (SentencePiece, 420 pieces)" in shown["tokenizer"]
    kv_bytes = 2 * config.n_layers * config.kv_dim * 4
    assert shown["KV cache"].startswith(f"{kv_bytes} bytes per token")
    assert shown["ISA"] == _core.isa()
    assert shown["threads"].startswith("1 (")
    assert ("without OpenMP" in shown["threads"]) != _core.has_openmp()


def test_without_a_tokenizer(cli: Cli, tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    shown = rows(cli("info", path).stdout)
    assert shown["tokenizer"] == f"none: no tokenizer was found next to {path}"
    assert shown["vocab_size"] == "96 (classifier of its own)"


def test_a_tokenizer_that_is_not_supported(cli: Cli, tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    reason = f"{tmp_path / 'tokenizer.json'}: the tokenizer's model is Unigram"
    assert rows(cli("info", path).stdout)["tokenizer"].startswith(f"none: {reason}")
    result = cli("run", path)
    assert result.status == 2
    assert reason in result.stderr
    assert "name one with -z" in result.stderr


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("stories260K", "llama2.c v0, float32"),
        ("stories260K_v1", "llama2.c v1, float32"),
        ("stories260K_q80", "llama2.c v2, int8 (groups of 64)"),
    ],
)
def test_real_files(cli: Cli, shared: Path, name: str, about: str) -> None:
    tokenizer = shared / "tokenizers" / "tok512.bin"
    shown = rows(cli("info", shared / "checkpoints" / f"{name}.bin", "-z", tokenizer).stdout)
    assert shown["format"] == about
    assert shown["parameters"] == "260,032"
    assert shown["tokenizer"].endswith("(llama2.c, 512 pieces)")


def test_names_that_are_no_utf8(cli: Cli, speaker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    shutil.copytree(speaker.parent, folder)
    command = [sys.executable, "-m", "pyllama2c", "info", str(folder / "model.bin")]
    result = subprocess.run(command, capture_output=True, check=True)
    assert result.stdout.count(os.fsencode(folder)) == 2  # model and tokenizer
    (folder / "model.bin").write_bytes(b"")
    result = cli("info", folder / "model.bin")
    assert result.status == 2
    assert result.stderr.endswith("/model.bin is empty\n")
