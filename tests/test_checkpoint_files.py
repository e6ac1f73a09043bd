"""`Model(path)`: llama2.c's files, and files that are none."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from reference import forward

from pyllama2c import ArgumentError, CheckpointError, Model, ModelConfig, TokenizerError
from pyllama2c.checkpoint import open_checkpoint
from pyllama2c.convert import llama2c

CONFIG = models.CONFIGS["untied"]
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def _write(path: Path, version: int, config: ModelConfig = CONFIG) -> Path:
    checkpoint = models.checkpoint_of(config)
    with path.open("wb") as file:
        if version == 2:
            llama2c.write_v2(file, checkpoint, 16)
        else:
            (llama2c.write_v0 if version == 0 else llama2c.write_v1)(file, checkpoint)
    return path


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_versions_are_told_apart(tmp_path: Path, version: int, tied: bool) -> None:
    config = ModelConfig(32, 80, 2, 4, 2, 96, 64, tied_embeddings=tied)
    path = _write(tmp_path / "model.bin", version, config)
    with Model(path) as model:
        assert model.config == config
        about = model.info()
        assert about["format"] == f"llama2.c v{version}"
        assert about["dtype"] == ("int8" if version == 2 else "float32")
        assert about["stored_dtype"] == ("int8 (groups of 16)" if version == 2 else "float32")
        assert about["file_bytes"] == path.stat().st_size


def test_v0_and_v1_are_the_same_model(tmp_path: Path) -> None:
    logits = []
    for version in (0, 1):
        with Model(_write(tmp_path / "model.bin", version)) as model:
            logits.append(model.logits([1, 2, 3]))
    assert np.array_equal(logits[0], logits[1])


def test_groups_that_straddle_rows(tmp_path: Path) -> None:
    """A row of 12 holds one and a half groups of 8; llama2.c itself reads such files wrongly."""
    config = ModelConfig(12, 20, 2, 2, 1, 30, 16)
    rng = np.random.default_rng(0)
    file = struct.pack("<Ii7iBi", 0x616B3432, 2, 12, 20, 2, 2, 1, 30, 16, 1, 8).ljust(256, b"\0")
    file += rng.uniform(0.5, 1.5, 5 * 12).astype("<f4").tobytes()
    for n in [30 * 12, *[144] * 2, *[72] * 4, *[144] * 2, *[240] * 6]:
        file += rng.integers(-127, 128, n, np.int8).tobytes()
        file += rng.uniform(0.001, 0.01, n // 8).astype("<f4").tobytes()
    path = tmp_path / "model.bin"
    path.write_bytes(file)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == config
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = forward(config, checkpoint.tensors, ids)
    for dtype, tolerance in (("float32", 1e-5), ("auto", 0.05)):
        with Model(path, dtype=dtype) as model:  # type: ignore[arg-type]
            assert np.abs(model.logits(ids) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim is 0"),
        ("dim", -32, "dim is -32"),
        ("dim", 33, "dim is 33, expected a multiple of n_heads = 4"),
        ("dim", 36, "expected an even head size"),
        ("dim", 64, "but the file"),
        ("dim", 2**31 - 4, "dim is 2147483644"),
        ("hidden_dim", -1, "hidden_dim is -1"),
        ("hidden_dim", 81, "the file"),
        ("hidden_dim", 2**24, "the file ends at"),
        ("n_layers", 0, "n_layers is 0"),
        ("n_layers", 2**16, "n_layers is 65536"),
        ("n_heads", 0, "n_heads is 0"),
        ("n_heads", 5, "expected a multiple of n_heads = 5"),
        ("n_heads", 32, "dim / n_heads is 1, expected an even head size"),
        ("n_kv_heads", 0, "n_kv_heads is 0"),
        ("n_kv_heads", 3, "expected a multiple of n_kv_heads = 3"),
        ("n_kv_heads", 8, "n_kv_heads is 8, expected 1 to 4"),
        ("vocab_size", 0, "vocab_size is 0"),
        ("vocab_size", -(2**31), "vocab_size is -2147483648"),
        ("vocab_size", 2**31 - 1, "vocab_size is 2147483647"),
        ("max_seq_len", 0, "max_seq_len is 0"),
        ("max_seq_len", -5, "max_seq_len is -5"),
    ],
)
def test_header_fields(tmp_path: Path, version: int, field: str, value: int, message: str) -> None:
    path = _write(tmp_path / "model.bin", version)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, (0 if version == 0 else 8) + 4 * FIELDS.index(field), value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        Model(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (4, "<i", 3, "version is 3, expected 1 or 2"),
        (4, "<i", 0, "version is 0, expected 1 or 2"),
        (36, "<B", 2, "shared_classifier is 2, expected 0 or 1"),
        (37, "<i", 0, "group_size is 0, expected at least 1"),
        (37, "<i", -16, "group_size is -16"),
        (37, "<i", 7, "group_size is 7, expected a divisor of token_embedding's"),
        (37, "<i", 8, "the file ends at"),
    ],
)
def test_the_rest_of_the_header(
    tmp_path: Path, offset: int, layout: str, value: int, message: str
) -> None:
    path = _write(tmp_path / "model.bin", 2)
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, offset, value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Model(path)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_truncated_and_oversized(tmp_path: Path, version: int) -> None:
    path = _write(tmp_path / "model.bin", version)
    data = path.read_bytes()
    for size in (1, 3, 4, 27, 28, 40, 255, 256, 300, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"needs \d+ bytes|norms alone need"):
            Model(path)
    for extra in (1, 4, 1000):
        path.write_bytes(data + bytes(extra))
        with pytest.raises(CheckpointError, match=f"expected {len(data)} by its header"):
            Model(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for content in (b"GGUF" + bytes(500), b"PK\x03\x04" + b"x" * 500, b"{}", b"#!/bin/sh\n" * 40):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"no llama2.c checkpoint|convert it first|needs \d+ bytes"
        ):
            Model(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    os.mkfifo(tmp_path / "fifo.bin")
    (tmp_path / "dangling.bin").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("empty.bin", "is empty"),
        ("fifo.bin", "not a regular file"),
        ("dangling.bin", "No such file"),
        ("missing.bin", "No such file"),
        ("folder", "neither config.json"),
        ("empty.bin\0.bin", "null byte"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            Model(tmp_path / name)
        assert name.split("\0")[0] in str(error.value)


def test_what_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="path is empty"):
        Model("")
    with pytest.raises(CheckpointError, match=r"path is '\\ud800.bin': .* surrogates not allowed"):
        Model("\ud800.bin")
    with pytest.raises(CheckpointError, match=r"path is 'aaa.*: File name too long"):
        Model(300 * "a")
    with pytest.raises(TokenizerError, match="tokenizer is empty"):
        Model(_write(tmp_path / "model.bin", 0), tokenizer="")
    for path in (3, b"model.bin", ["model.bin"]):
        with pytest.raises(ArgumentError, match=r"path is .*, expected a path"):
            Model(path)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="mmap is 'no', expected True, False or None"):
        Model(mmap="no")  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.bin", 0)
    path.chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        Model(path)


def test_a_claimed_context_costs_next_to_nothing(tmp_path: Path) -> None:
    """A header may claim any context: what is kept for it are 7 bytes a token until it is used."""
    path = _write(tmp_path / "model.bin", 1)
    data = bytearray(path.read_bytes())
    grown = []
    for context in (64, 2**24):
        struct.pack_into("<i", data, 8 + 4 * 6, context)
        path.write_bytes(data)
        code = (
            "import resource, sys; from pyllama2c import Model\n"
            "with Model(sys.argv[1]) as model: model.generate([1, 2, 3], max_tokens=5, seed=1)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(path)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        grown.append(int(result.stdout) * 1024)
    assert grown[1] - grown[0] < 7.5 * 2**24
