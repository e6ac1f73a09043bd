"""`Model.logits`: right, and the same bits however they are computed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import forward

from pyllama2c import Model, ModelConfig, _core

# A single row of this is worth several threads, and no size is a multiple of 16.
WIDE = ModelConfig(228, 500, 2, 6, 3, 150, 80)
# The feed-forward width of the 93M model, on whose rows other engines' blocks break.
HIDDEN_2268 = ModelConfig(48, 2268, 1, 4, 4, 96, 32)

DTYPES = ["float32", "bfloat16", "int8", "int4"]
KV_DTYPES = ["float32", "float16", "int8"]

# What must not change a bit, besides the instruction set: threads, and rows in a prompt's pieces.
CUTS = [(1, 1), (2, 1), (3, 1), (1, 7), (2, 64), (3, 1 << 20)]
EVERY_CUT = list(itertools.product((1, 2, 3), (1, 7, 64, 1 << 20)))

goes_through_all = pytest.mark.skipif(
    _core.isa() != _core.supported_isas()[0], reason="goes through all instruction sets by itself"
)


@pytest.mark.parametrize(
    "name",
    ["stories260K.bin", "stories260K_v1.bin", "stories260K_q80.bin", "stories260K_q80_g4.bin"],
)
def test_stored_logits(shared: Path, name: str) -> None:
    """float32 arithmetic is within 2e-4 of float64, for the numbers that the file says."""
    oracle = f"logits_{name.removesuffix('.bin').removesuffix('_v1')}.npz"
    with (
        np.load(shared / "oracle" / oracle) as stored,
        Model(shared / "checkpoints" / name, dtype="float32") as model,
    ):
        logits = model.logits(stored["token_ids"])
        assert logits.dtype == np.float32
        assert logits.shape == stored["logits"].shape
        assert np.abs(logits - stored["logits"]).max() < 2e-4


@pytest.mark.parametrize("name", models.CONFIGS)
def test_random_models(tmp_path: Path, name: str) -> None:
    config = models.CONFIGS[name]
    tensors = models.random_tensors(config)
    path = models.write_v0(tmp_path / "model.bin", config, tensors)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, config.max_seq_len)
    with Model(path) as model:
        assert model.config == config
        logits = model.logits(ids)
    np.testing.assert_allclose(logits, forward(config, tensors, ids), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("rope_theta", "norm_eps"), [(500000.0, 1e-6), (100.0, 0.1)])
def test_rope_theta_and_norm_eps_are_fields(rope_theta: float, norm_eps: float) -> None:
    config = ModelConfig(32, 80, 2, 4, 4, 96, 64, rope_theta=rope_theta, norm_eps=norm_eps)
    tensors = models.random_tensors(config)
    ids = list(range(60))
    logits = _weights(config, tensors, "float32").logits(ids, _core.KvType.float32, 1, 16)
    np.testing.assert_allclose(logits, forward(config, tensors, ids), rtol=0, atol=2e-4)


@goes_through_all
@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K_q80.bin"])
def test_same_bits_with_every_cut(monkeypatch: pytest.MonkeyPatch, shared: Path, name: str) -> None:
    with np.load(shared / "oracle" / "logits_stories260K.npz") as stored:
        ids = (stored["token_ids"].tolist() * 2)[:70]  # more than the longest piece of a prompt
    _expect_same_bits(monkeypatch, shared / "checkpoints" / name, ids, EVERY_CUT)


@goes_through_all
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("config", "length"), [(WIDE, 18), (HIDDEN_2268, 18)])
def test_same_bits(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig, length: int, dtype: str, kv_dtype: str
) -> None:
    """The batches of tests/cpp/test_logits.cpp mix several texts too."""
    tensors = models.random_tensors(config)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, length).tolist()
    expected = None
    for isa in _core.supported_isas():
        monkeypatch.setenv("PYLLAMA2C_FORCE_ISA", isa)
        assert _core.isa() == isa
        weights = _weights(config, tensors, dtype)
        for n_threads, chunk in CUTS:
            logits = weights.logits(ids, _core.KvType.__members__[kv_dtype], n_threads, chunk)
            expected = logits if expected is None else expected
            assert np.array_equal(_bits(logits), _bits(expected)), (isa, n_threads, chunk)
    assert expected is not None
    assert np.isfinite(expected).all()
    assert expected.std() > 0.1  # otherwise this tested less than it says


@goes_through_all
@pytest.mark.parametrize(
    ("name", "dtype", "kv_dtype"),
    [
        *(("stories260K.bin", *types) for types in itertools.product(DTYPES, KV_DTYPES)),
        ("stories260K_q80.bin", "auto", "int8"),
        ("stories260K_q80_g4.bin", "auto", "float16"),
    ],
)
def test_same_bits_of_real_models(
    monkeypatch: pytest.MonkeyPatch, shared: Path, name: str, dtype: str, kv_dtype: str
) -> None:
    with np.load(shared / "oracle" / "logits_stories260K.npz") as stored:
        ids = stored["token_ids"].tolist()[:40]
    path = shared / "checkpoints" / name
    _expect_same_bits(monkeypatch, path, ids, CUTS, dtype=dtype, kv_dtype=kv_dtype)


def _expect_same_bits(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    ids: list[int],
    cuts: list[tuple[int, int]],
    **options: Any,
) -> None:
    expected = None
    for isa, (n_threads, chunk) in itertools.product(_core.supported_isas(), cuts):
        monkeypatch.setenv("PYLLAMA2C_FORCE_ISA", isa)
        with Model(path, n_threads=n_threads, prefill_chunk=chunk, **options) as model:
            assert model.info()["isa"] == isa
            logits = model.logits(ids)
        expected = logits if expected is None else expected
        assert np.array_equal(_bits(logits), _bits(expected)), (isa, n_threads, chunk)


def _weights(config: ModelConfig, tensors: dict[str, NDArray[Any]], dtype: str) -> _core.Weights:
    fields = {name: getattr(config, name) for name in ModelConfig.__slots__}
    return _core.Weights.from_tensors(fields, tensors, dtype, 2)


def _bits(logits: NDArray[np.float32]) -> NDArray[np.uint32]:
    return logits.view(np.uint32)
