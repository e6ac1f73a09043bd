"""The whole life of a model, through the command line: from stories to transformers and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training import MODEL, curve, make_run, stories

from pyllama2c import Model
from pyllama2c.checkpoint import open_checkpoint, to_float32
from pyllama2c.train.config import DataConfig

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="training needs safetensors")
pytest.importorskip("matplotlib", reason="training draws its losses with matplotlib")

PROMPTS = ["从前", "从前，有一只小熊，名叫莉莉。", ""]
STEPS = 300
# Before training it is ln 400 = 6; what the templates leave open is worth 0.3 a token.
LOSS_BOUND = 1.0


def pyllama2c(*arguments: object) -> str:
    command = [sys.executable, "-m", "pyllama2c", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything has been done."""
    folder = tmp_path_factory.mktemp("life")
    corpus = folder / "corpus.json"
    corpus.write_text(json.dumps([{"story": story.text} for story in stories(500)]))
    data, run = folder / "data", folder / "run"
    pyllama2c("data", "prepare", corpus, "--validation", 0.05, "-o", data)
    pyllama2c(
        "tokenizer", "train", data / "train.jsonl", "-o", data, "--vocab-size", MODEL.vocab_size
    )
    files = {}
    for part in ("train", "validation"):
        files[part] = str(data / f"{part}.npy")
        pyllama2c("data", "tokenize", data / f"{part}.jsonl", "-z", data / "tokenizer.model", "-j",
                  1, "-o", files[part])  # fmt: skip
    config = make_run(
        DataConfig(**files, tokenizer=str(data / "tokenizer.model"), windows="stories"),
        max_steps=STEPS,
        batch_size=8,
        eval_interval=100,
        dropout=0.0,
    )
    (folder / "life.toml").write_text(config.to_toml(), encoding="utf-8")
    pyllama2c("train", folder / "life.toml", "-o", run)
    for version in ("v0", "v1", "v2"):
        (folder / version).mkdir()
        said = pyllama2c("convert", run, folder / version / "model.bin", "--to", version)
        # 76 and 32 have no larger divisor in common.
        assert ("group size 4, not 64" in said) == (version == "v2")
    pyllama2c("convert", run, folder / "hf")
    pyllama2c("convert", folder / "hf", folder / "again.bin", "--to", "v1")
    pyllama2c("convert", folder / "again.bin", folder / "hf again")
    return folder


@pytest.mark.slow
def test_the_loss_falls(life: Path) -> None:
    records = curve(life / "run")
    loss = [record["loss"] for record in records if "loss" in record]
    assert len(loss) == STEPS
    assert loss[0] > 5
    assert np.mean(loss[-20:]) < LOSS_BOUND
    held_out = [record["val_loss"] for record in records if "val_loss" in record]
    assert held_out[-1] < LOSS_BOUND


@pytest.mark.slow
def test_every_format_tells_the_same_story(life: Path) -> None:
    """As the reference's model card has it: AutoModelForCausalLM and AutoTokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(life / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(life / "hf")
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        (ids,) = theirs.generate(**inputs, do_sample=False, max_new_tokens=60)
        with torch.no_grad():
            logits = theirs(ids[None]).logits[0].numpy()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert len(text) > len(prompt) + 10
        for source in ("v0/model.bin", "v1/model.bin", "hf", "run"):
            with Model(life / source) as ours:
                told = ours.generate(prompt, temperature=0, max_tokens=60).text
                assert prompt + told == text, source
                assert np.abs(ours.logits(ids.tolist()) - logits).max() < 1e-4, source


@pytest.mark.slow
def test_int8_is_near(life: Path) -> None:
    with Model(life / "v1" / "model.bin") as exact, Model(life / "v2" / "model.bin") as int8:
        assert int8.info()["stored_dtype"] == "int8 (groups of 4)"
        ids = exact.tokenizer.encode(PROMPTS[1])  # type: ignore[union-attr]
        difference = np.abs(exact.logits(ids) - int8.logits(ids))
        assert 0 < difference.max() < 0.5
        assert int8.generate("从前", temperature=0, max_tokens=30).text


@pytest.mark.slow
def test_round_trip_is_bit_equal(life: Path) -> None:
    """Hugging Face to llama2.c's v1 and back, and the weights that were trained."""
    first, second = ((life / n / "model.safetensors").read_bytes() for n in ("hf", "hf again"))
    assert first == second
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"):
        assert (life / "hf" / name).read_bytes() == (life / "hf again" / name).read_bytes()
    trained = open_checkpoint(life / "run")
    for source in ("hf", "v0/model.bin", "v1/model.bin"):
        converted = open_checkpoint(life / source)
        assert converted.config == trained.config
        for name, weight in trained.tensors.items():
            np.testing.assert_array_equal(to_float32(converted.tensors[name]), to_float32(weight))
