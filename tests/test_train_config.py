"""Training configurations: what comes with the package, overrides, and every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllama2c.errors import ArgumentError
from pyllama2c.train.config import CONFIGS, TrainConfig, config_names, load_config


def test_what_comes_with_the_package() -> None:
    parameters = {
        "stories-15m": 15.2,
        "stories-260k": 0.26,
        "tinystories-zh-93m": 93.3,
        "tonghua-3m": 3.2,
    }
    assert config_names() == sorted(parameters)
    for name, millions in parameters.items():
        assert load_config(name).model.n_params / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_reference() -> None:
    config = load_config("tinystories-zh-93m")
    model, train = config.model, config.train
    assert (model.dim, model.n_layers, model.n_heads, model.n_kv_heads) == (768, 12, 12, 12)
    assert (model.hidden_dim, model.max_seq_len, model.vocab_size) == (2268, 768, 3000)
    assert model.tied_embeddings
    assert (train.batch_size, train.grad_accumulation, train.dropout) == (24, 4, 0.1)
    assert train.max_steps == 22_940
    assert train.learning_rate_at(train.warmup_steps) == 3e-4
    assert train.learning_rate_at(train.max_steps) == pytest.approx(3e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    train = TrainConfig(
        batch_size=1, max_steps=110, learning_rate=1.0, warmup_steps=10, min_learning_rate=0.1
    )
    rates = [train.learning_rate_at(step) for step in range(120)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.55)  # half of the way down
    assert rates[110:] == [pytest.approx(0.1)] * 10


def test_overrides() -> None:
    config = load_config(
        "tonghua-3m",
        ["batch_size=3", "train.dtype=float32", "data.train=a=b.npy", "dim=24", "grad_clip=0"],
    )
    assert (config.train.batch_size, config.train.dtype, config.train.grad_clip) == (
        3,
        "float32",
        0,
    )
    assert (config.data.train, config.model.dim) == ("a=b.npy", 24)


def test_a_written_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config("tonghua-3m", ['data.train=C:\\"x"\n莉莉.npy'])
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size is 0, expected at least 1"),
        (["dropout=1"], "dropout is 1.0, expected a number from 0 to below 1"),
        (["dtype=float8"], "dtype is 'float8', expected one of auto, float32"),
        (["windows=doors"], "windows is 'doors'"),
        (["batch_size=many"], r"batch_size is 'many', expected int"),
        (["batch_size=1.5"], r"batch_size is 1.5, expected int"),
        (["learning_rate=nan"], "learning_rate is nan"),
        (["batchsize=1"], "override 'batchsize=1': unknown key, expected model.dim"),
        (["model.batch_size=1"], "override 'model.batch_size=1'"),
        (["batch_size"], "expected key=value"),
        (["n_heads=5"], "n_heads"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_config("tonghua-3m", overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model", "not TOML"),
        ("[modle]\n", r"unknown 'modle', expected \[model\], \[data\], \[train\]"),
        ("[model]\ndim = 8\n", r"\[model\]: hidden_dim, .* missing"),
        ("[model]\ndepth = 8\n", r"\[model\]: unknown key 'depth'"),
        ("model = 3\n", r"model is 3, expected one table \[model\]"),
        ("[[model]]\n", r"expected one table \[model\]"),
        ("# \xe9\n", "not UTF-8"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(content, encoding="latin-1")
    with pytest.raises(ArgumentError, match=message):
        load_config(tmp_path / "c.toml")


def test_a_file_that_an_editor_marked_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text((CONFIGS / "stories-260k.toml").read_text(), encoding="utf-8-sig")
    assert load_config(path) == load_config("stories-260k")


def test_no_such_configuration() -> None:
    with pytest.raises(ArgumentError, match="or one of stories-15m, stories-260k"):
        load_config("stories-1b")
