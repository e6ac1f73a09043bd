"""llama2.c's formats: written as llama2.c writes them, read back whole, broken files refused."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIGS, checkpoint_of, random_tensors
from reference import forward

from pyllama2c.checkpoint import Checkpoint, open_checkpoint, tensor_shapes
from pyllama2c.checkpoint.llama2c import load_llama2c
from pyllama2c.config import ModelConfig
from pyllama2c.convert.llama2c import group_size_for, quantize, write_v0, write_v1, write_v2
from pyllama2c.errors import ArgumentError, CheckpointError


def written(
    path: Path, write: Callable[..., None], checkpoint: Checkpoint, *args: Any
) -> Checkpoint:
    with path.open("wb") as file:
        write(file, checkpoint, *args)
    return load_llama2c(path)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_round_trip_is_exact(tmp_path: Path, name: str, version: int) -> None:
    original = checkpoint_of(CONFIGS[name])
    back = written(tmp_path / "model.bin", [write_v0, write_v1][version], original)
    assert back.config == original.config
    assert back.kind == f"llama2.c v{version}"
    assert list(back.tensors) == list(tensor_shapes(original.config))
    for tensor, weight in original.tensors.items():
        np.testing.assert_array_equal(back.tensors[tensor], weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_is_within_half_a_step(tmp_path: Path, name: str) -> None:
    original = checkpoint_of(CONFIGS[name])
    group = group_size_for(original.config, 64)
    back = written(tmp_path / "model.bin", write_v2, original, group)
    assert back.config == original.config
    for tensor, weight in original.tensors.items():
        if weight.ndim == 1:
            np.testing.assert_array_equal(back.tensors[tensor], weight)
            continue
        groups = weight.reshape(-1, group)
        error = np.abs(back.tensors[tensor].reshape(-1, group) - groups).max(axis=1)
        assert (error <= np.abs(groups).max(axis=1) / 127 * 0.50001).all()


def test_files_equal_those_of_llama2c(shared: Path, tmp_path: Path) -> None:
    checkpoints = shared / "checkpoints"
    model = open_checkpoint(checkpoints / "stories260K.bin")
    written(tmp_path / "v1.bin", write_v1, model)
    written(tmp_path / "v2.bin", write_v2, model, 4)
    assert (tmp_path / "v1.bin").read_bytes() == (checkpoints / "stories260K_v1.bin").read_bytes()
    assert (tmp_path / "v2.bin").read_bytes() == (
        checkpoints / "stories260K_q80_g4.bin"
    ).read_bytes()
    # The rotary tables of v0 are cosines and sines, which differ in their last bits.
    written(tmp_path / "v0.bin", write_v0, model)
    ours, theirs = (
        np.frombuffer(path.read_bytes(), "<f4", offset=28)
        for path in (tmp_path / "v0.bin", checkpoints / "stories260K.bin")
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_v0_rotary_tables(tmp_path: Path) -> None:
    config = CONFIGS["odd sizes"]
    written(tmp_path / "model.bin", write_v0, checkpoint_of(config))
    floats = np.frombuffer((tmp_path / "model.bin").read_bytes(), "<f4", offset=28)
    n = config.max_seq_len * config.head_size // 2
    cosines, sines = floats[-2 * n : -n], floats[-n:]
    position, pair = 5, 3
    angle = position * 10000.0 ** (-2 * pair / config.head_size)
    at = position * config.head_size // 2 + pair
    assert cosines[at] == pytest.approx(np.cos(angle), abs=1e-6)
    assert sines[at] == pytest.approx(np.sin(angle), abs=1e-6)


@pytest.mark.parametrize(
    ("dim", "hidden", "wanted", "chosen"),
    [
        (768, 2268, 64, 12),
        (64, 172, 64, 4),
        (288, 768, 64, 48),
        (768, 2048, 64, 64),
        (768, 2048, 1000, 256),
        (32, 61, 64, 1),
    ],
)
def test_group_size_divides_every_row(dim: int, hidden: int, wanted: int, chosen: int) -> None:
    assert group_size_for(ModelConfig(dim, hidden, 1, 2, 2, 8, 8), wanted) == chosen


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ArgumentError, match="group_size is 64"):
        write_v2(io.BytesIO(), checkpoint_of(CONFIGS["grouped-query"]), 64)
    with pytest.raises(ArgumentError, match="group_size is 0"):
        group_size_for(CONFIGS["grouped-query"], 0)


def test_reading_groups_that_straddle_rows(tmp_path: Path) -> None:
    """As llama2.c's exporter writes a hidden size that is no multiple of the group."""
    config = ModelConfig(16, 12, 1, 2, 1, 8, 8)
    model = checkpoint_of(config)
    group = 32
    # The header with another group size, and the tensors by hand.
    data = io.BytesIO()
    write_v2(data, model, 4)
    parts = [data.getvalue()[:37], struct.pack("<i", group), bytes(256 - 41)]
    expected = {}
    for name in _v2_order(config):
        weight = model.tensors[name]
        if weight.ndim == 1:
            parts.append(weight.tobytes())
            expected[name] = weight
            continue
        values, scales = quantize(weight, group)
        parts += [values.tobytes(), scales.tobytes()]
        expected[name] = (values * scales[:, None]).reshape(weight.shape)
    path = tmp_path / "model.bin"
    path.write_bytes(b"".join(parts))
    back = load_llama2c(path)
    for name, weight in expected.items():
        np.testing.assert_array_equal(back.tensors[name], weight)


def _v2_order(config: ModelConfig) -> list[str]:
    names = ["attention_norm", "ffn_norm"]
    order = [f"layers.{layer}.{n}.weight" for n in names for layer in range(config.n_layers)]
    order += ["norm.weight", "tok_embeddings.weight"]
    names = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
    names += ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    order += [f"layers.{layer}.{n}.weight" for n in names for layer in range(config.n_layers)]
    return order


def test_zero_and_denormal_groups() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[1] = [1e-45, -1e-45, 0, 1e-44]
    values, scales = quantize(weight, 4)
    assert np.isfinite(scales).all()
    assert np.abs(values.astype(int)).max() <= 127
    assert (values[0] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_int8_refuses_what_is_no_number(bad: float) -> None:
    config = CONFIGS["multi-head"]
    tensors = random_tensors(config)
    tensors["layers.1.attention.wo.weight"][3, 3] = bad
    model = dataclasses.replace(checkpoint_of(config), tensors=tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.wo\.weight"):
        write_v2(io.BytesIO(), model, 16)


@pytest.mark.parametrize(("field", "value"), [("rope_theta", 500000.0), ("norm_eps", 1e-6)])
@pytest.mark.parametrize("write", [write_v0, write_v1, lambda f, c: write_v2(f, c, 1)])
def test_what_the_formats_cannot_hold_is_refused(
    write: Callable[..., None], field: str, value: float
) -> None:
    config = dataclasses.replace(CONFIGS["multi-head"], **{field: value})
    file = io.BytesIO()
    with pytest.raises(ArgumentError, match=field):
        write(file, checkpoint_of(config))
    assert not file.getvalue()


@pytest.mark.parametrize("write", [write_v0, write_v1, lambda f, c: write_v2(f, c, 4)])
def test_any_other_length_is_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    data = io.BytesIO()
    write(data, checkpoint_of(CONFIGS["grouped-query"]))
    path = tmp_path / "model.bin"
    for length in [0, 1, 27, 28, 40, 255, 256, 1000, len(data.getvalue()) - 1]:
        path.write_bytes(data.getvalue()[:length])
        with pytest.raises(CheckpointError):
            load_llama2c(path)
    path.write_bytes(data.getvalue() + b"\0")
    with pytest.raises(CheckpointError, match="too long"):
        load_llama2c(path)


def test_mutated_headers_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "model.bin"
    extremes = [-(2**31), -1, 0, 1, 2, 255, 2**16, 2**31 - 1]
    for write in (write_v0, write_v1, lambda f, c: write_v2(f, c, 4)):
        data = io.BytesIO()
        write(data, checkpoint_of(CONFIGS["grouped-query"]))
        start = 0 if write is write_v0 else 4
        for _ in range(500):
            broken = bytearray(data.getvalue())
            for _ in range(rng.integers(1, 3)):
                at = int(rng.integers(start, 41))
                if rng.random() < 0.5:
                    broken[at] = rng.integers(256)
                else:
                    broken[at : at + 4] = struct.pack("<i", int(rng.choice(extremes)))
            path.write_bytes(broken)
            try:
                model = load_llama2c(path)
            except CheckpointError:
                continue
            for tensor, shape in tensor_shapes(model.config).items():
                assert model.tensors[tensor].shape == shape


def test_a_bad_field_is_named(tmp_path: Path) -> None:
    data = io.BytesIO()
    write_v2(data, checkpoint_of(CONFIGS["grouped-query"]), 4)
    path = tmp_path / "model.bin"
    for at, value, message in [
        (4, 3, "version is 3"),
        (8, 0, "dim is 0"),
        (20, 7, "n_heads is 7"),
        (37, 0, "group_size is 0"),
        (37, 10000, "group_size is 10000"),
    ]:
        broken = bytearray(data.getvalue())
        broken[at : at + 4] = struct.pack("<i", value)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=message):
            load_llama2c(path)


def test_the_engine_agrees_with_the_reference(tmp_path: Path) -> None:
    """Every shape that the formats allow, through the library's own reader."""
    from pyllama2c import Model

    for name, config in CONFIGS.items():
        model = checkpoint_of(config)
        ids = [i % config.vocab_size for i in (1, 5, 3, 90, 17, 5, 2)]
        expected = forward(config, model.tensors, ids)
        for write in (write_v0, write_v1):
            written(tmp_path / "model.bin", write, model)
            with Model(tmp_path / "model.bin") as engine:
                difference = np.abs(engine.logits(ids) - expected).max()
            assert difference < 1e-4, (name, write)
