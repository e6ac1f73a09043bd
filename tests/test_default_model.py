"""The model that comes with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyllama2c
from pyllama2c import Model
from pyllama2c.model import DEFAULT_MODEL

ASSETS = Path(pyllama2c.__file__).parent / "assets"
HERO = "从前，有一只小兔子，名叫莉莉。"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


def test_it_is_small_and_complete(model: Model) -> None:
    assert model.path == DEFAULT_MODEL
    assert DEFAULT_MODEL.parent == ASSETS
    files = {path.name: path.stat().st_size for path in ASSETS.iterdir() if path.is_file()}
    assert {"tonghua-3m.bin", "tokenizer.model", "README.md"} <= files.keys()
    assert sum(files.values()) < 5_000_000
    about = model.info()
    assert (about["dtype"], about["stored_dtype"]) == ("int8", "int8 (groups of 64)")
    assert model.tokenizer is not None
    assert model.config.vocab_size == model.tokenizer.vocab_size == 3000
    assert model.config.max_seq_len >= 256


def test_it_is_of_the_configuration_that_comes_with_it(model: Model) -> None:
    from pyllama2c.train.config import load_config

    assert load_config("tonghua-3m").model == model.config


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_tells_a_chinese_story(model: Model, seed: int) -> None:
    told = model.generate("", temperature=0.8, seed=seed)
    text = told.text
    hanzi = sum("\u4e00" <= character <= "\u9fff" for character in text)
    assert len(text) > 100
    assert hanzi > 0.75 * len(text)
    assert "\ufffd" not in text
    assert text.count("。") >= 4


def test_heroes_stay(model: Model) -> None:
    """In most stories that begin with Lily, Lily comes back, and nobody else takes her name."""
    texts = [model.generate(HERO, temperature=0.8, seed=seed).text for seed in range(10)]
    assert sum("莉莉" in text for text in texts) >= 8


def test_it_is_deterministic(model: Model) -> None:
    told = model.generate(HERO, temperature=0.8, seed=7).token_ids
    with Model(n_threads=1, prefill_chunk=3, max_sequences=1) as other:
        assert other.generate(HERO, temperature=0.8, seed=7).token_ids == told


def test_commands_without_a_path(cli: Callable[..., Any]) -> None:
    first, second = (cli("run", "-s", 1, "-n", 40) for _ in range(2))
    assert first.status == 0, first.stderr
    assert first.stdout == second.stdout
    assert len(first.stdout) > 40
    with Model() as model:
        told = model.generate("", temperature=1.0, top_p=0.9, seed=1, max_tokens=40)
        assert first.stdout == told.text + "\n"
    result = cli("info")
    assert result.status == 0
    assert "tonghua-3m.bin" in result.stdout
    result = cli("run", "-m", "chat", "-n", 60, "-s", 1, stdin="你好\n")
    assert result.status == 0, result.stderr
    assert "Assistant: " in result.stdout


def test_importing_does_not_load_it() -> None:
    code = """if True:
        import json, sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args)) if event == "open" else None)
        import pyllama2c
        assert opened
        print(json.dumps([one for one in opened if "tonghua" in one or "assets" in one]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_path_is_still_a_path(tmp_path: Path) -> None:
    with pytest.raises(pyllama2c.CheckpointError, match="No such file"):
        Model(tmp_path / "tonghua-3m.bin")
