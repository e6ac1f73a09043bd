"""Perplexity and bits per character: against the reference, and the windows of long stories."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import forward

from pyllama2c import ArgumentError, CapacityError, Model, TokenizerError
from pyllama2c.checkpoint import open_checkpoint
from pyllama2c.evaluation import Evaluation, evaluate, windows


def reference_log_probabilities(path: Path, ids: list[int]) -> np.ndarray:
    """Of ids[1:], in float64."""
    checkpoint = open_checkpoint(path)
    logits = forward(checkpoint.config, checkpoint.tensors, ids[:-1])
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[np.arange(len(ids) - 1), ids[1:]]


def test_log_probabilities_are_the_reference_s(speaker: Path) -> None:
    rng = np.random.default_rng(3)
    with Model(speaker) as model:
        ids = rng.integers(0, model.config.vocab_size, model.config.max_seq_len + 1).tolist()
        got = model.log_probabilities(ids)
        assert got.dtype == np.float32
        assert got.shape == (len(ids) - 1,)
        np.testing.assert_allclose(got, reference_log_probabilities(speaker, ids), atol=2e-5)
        assert model.log_probabilities(ids[:1]).shape == (0,)
        assert model.log_probabilities([]).shape == (0,)


def test_improbable_tokens_keep_a_finite_log_probability(tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    tensors = models.random_tensors(config)
    tensors["output.weight"] *= 1000
    path = models.write_v0(tmp_path / "model.bin", config, tensors)
    ids = list(range(40))
    with Model(path) as model:
        got = model.log_probabilities(ids)
    assert got.min() < -200  # far below what a float32 probability can be
    np.testing.assert_allclose(got, reference_log_probabilities(path, ids), rtol=1e-4, atol=1e-4)


def test_what_log_probabilities_refuses(speaker: Path) -> None:
    with Model(speaker) as model:
        n = model.config.max_seq_len
        with pytest.raises(CapacityError, match=f"ids has {n + 2} tokens, at most {n + 1} fit"):
            model.log_probabilities([1] * (n + 2))
        for token in (model.config.vocab_size, 2**31 - 1):
            with pytest.raises(ArgumentError, match=f"ids holds token {token}"):
                model.log_probabilities([1, token])


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_predict_every_token_once(n: int, context: int) -> None:
    ids = list(range(100, 100 + n))
    predicted = []
    for i, (window, n_known) in enumerate(windows(ids, context)):
        assert 1 <= len(window) <= context + 1
        assert window[0] == ids[0]
        predicted += window[n_known:]
        if i > 0:
            assert len(window) > n_known >= max(1, context // 2)
            begin = ids.index(window[n_known]) - (n_known - 1)
            assert window[1:] == ids[begin : begin + len(window) - 1]
    assert predicted == ids[1:]


def test_evaluate_sums_over_stories_and_windows(speaker: Path) -> None:
    stories = ["Once upon a time", "", "the cat and the dog " * 40, "猫"]
    with Model(speaker, n_threads=1) as model:
        assert model.tokenizer is not None
        done = evaluate(model, stories)
        ids = [model.tokenizer.encode(story) for story in stories if story]
        assert len(ids[1]) > 2 * model.config.max_seq_len
        nats = 0.0
        for story in ids:
            for window, n_known in windows(story, model.config.max_seq_len):
                nats -= reference_log_probabilities(speaker, window)[n_known - 1 :].sum()
    assert (done.stories, done.characters) == (3, sum(map(len, stories)))
    assert done.tokens == sum(len(story) - 1 for story in ids)
    assert done.nats == pytest.approx(nats, rel=1e-5)
    assert done.perplexity == pytest.approx(math.exp(nats / done.tokens), rel=1e-4)
    assert done.bits_per_character == pytest.approx(nats / done.characters / math.log(2), rel=1e-5)


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert Evaluation(stories=1, tokens=1, characters=1, nats=1e6).perplexity == math.inf


def test_what_evaluate_refuses(speaker: Path, tmp_path: Path) -> None:
    with Model(speaker) as model, pytest.raises(ArgumentError, match="stories hold no text"):
        evaluate(model, ["", "  "])
    config = models.CONFIGS["multi-head"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    with Model(path) as model, pytest.raises(TokenizerError, match="no tokenizer"):
        evaluate(model, ["text"])


def test_the_command(cli: Callable[..., Any], speaker: Path, tmp_path: Path) -> None:
    text = tmp_path / "stories.jsonl"
    stories = ["one cat", "two dogs", "three birds"]
    text.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    result = cli("eval", speaker, text, "--limit", 2, "--dtype", "int8", "--kv-dtype", "int8")
    assert (result.status, result.stderr) == (0, "")
    shown = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert shown["stories"].strip() == "2"
    as_json = cli("eval", speaker, text, "--limit", 2, "--dtype=int8", "--kv-dtype=int8", "--json")
    facts = json.loads(as_json.stdout)
    with Model(speaker, dtype="int8", kv_dtype="int8") as model:
        done = evaluate(model, stories[:2])
    assert facts["dtype"] == facts["kv_dtype"] == "int8"
    assert facts["characters"] == len("".join(stories[:2]))
    assert facts["perplexity"] == pytest.approx(done.perplexity, rel=1e-5)
    assert facts["bits_per_character"] == pytest.approx(done.bits_per_character, rel=1e-5)


def test_json_has_no_infinity(
    cli: Callable[..., Any], speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("one cat")
    hopeless = Evaluation(stories=1, tokens=1, characters=1, nats=1e6)
    monkeypatch.setattr("pyllama2c.evaluation.evaluate", lambda *_: hopeless)
    facts = json.loads(cli("eval", speaker, tmp_path / "text.txt", "--json").stdout)
    assert (facts["perplexity"], facts["nats_per_token"]) == (None, 1e6)


def test_the_command_s_errors(cli: Callable[..., Any], speaker: Path, tmp_path: Path) -> None:
    result = cli("eval", speaker, tmp_path / "missing.txt")
    assert result.status == 2
    assert "missing.txt: no such file" in result.stderr
    text = tmp_path / "stories.jsonl"
    text.write_text('{"text": "one"}\n{"text": "\\ud800"}\n')
    assert (
        "stories.jsonl:2: the story holds an unpaired surrogate"
        in cli("eval", speaker, text).stderr
    )
    alone = tmp_path / "alone.bin"
    alone.write_bytes(speaker.read_bytes())
    assert "alone.bin: name one with -z" in cli("eval", alone, text).stderr
    assert "3 paths, expected [MODEL] TEXT" in cli("eval", speaker, speaker, speaker).stderr
