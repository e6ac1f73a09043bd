"""`Model.generate` and `Model.stream`: what is written, where it ends, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama2c import (
    ArgumentError,
    CapacityError,
    ClosedError,
    Completion,
    Model,
    SamplingParams,
    Tokenizer,
    TokenizerError,
)


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


def _tokenizer(model: Model) -> Tokenizer:
    assert model.tokenizer is not None
    return model.tokenizer


def _essence(completion: Completion) -> tuple[Any, ...]:
    """All but the times."""
    c = completion
    return c.text, c.token_ids, c.finish_reason, c.usage, c.seed


def test_a_completion_tells_all(model: Model) -> None:
    tokenizer = _tokenizer(model)
    prompt = tokenizer.encode("Once upon")
    completion = model.generate("Once upon", seed=5, max_tokens=20)
    assert str(completion) == completion.text
    ids = [*prompt, *completion.token_ids]
    assert tokenizer.decode(ids) == "Once upon" + completion.text
    assert completion.finish_reason == "length"
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.completion_tokens == len(completion.token_ids) == 20
    assert completion.usage.total_tokens == len(ids)
    assert completion.seed == 5
    assert completion.timings.prefill_seconds > 0
    assert completion.timings.decode_seconds > 0
    assert completion.timings.tokens_per_second == pytest.approx(
        19 / completion.timings.decode_seconds
    )


def test_greedy_takes_the_likeliest(model: Model) -> None:
    ids = _tokenizer(model).encode("Lily")
    completion = model.generate(ids, temperature=0, max_tokens=30, ignore_eos=True)
    for token in completion.token_ids:
        assert token == model.logits(ids)[-1].argmax()
        ids.append(token)


def test_one_seed_one_text(model: Model) -> None:
    for seed in (0, 1, 2**64 - 1):
        first, second = (model.generate("Lily", seed=seed) for _ in range(2))
        assert _essence(first) == _essence(second)
        assert first.seed == seed
    assert len({model.generate("Lily", seed=seed).text for seed in range(8)}) == 8


def test_no_seed_is_a_fresh_one_and_told(model: Model) -> None:
    first, second = (model.generate("Lily", max_tokens=30) for _ in range(2))
    assert first.seed != second.seed
    assert first.text != second.text
    assert _essence(model.generate("Lily", max_tokens=30, seed=first.seed)) == _essence(first)


def test_ids_are_taken_as_they_are(model: Model) -> None:
    text = model.generate("小兔子", seed=3)
    ids = _tokenizer(model).encode("小兔子")
    for same in (ids, tuple(ids), np.array(ids), np.array(ids, "u2")):
        assert _essence(model.generate(same, seed=3)) == _essence(text)


def test_a_list_is_written_as_its_prompts_alone(model: Model) -> None:
    prompts = ["Once", "", "Lily 🐰", "小兔子说", "Once upon"]
    alone = [model.generate(prompt, seed=9, max_tokens=40) for prompt in prompts]
    together = model.generate(prompts, seed=9, max_tokens=40)
    assert [_essence(c) for c in together] == [_essence(c) for c in alone]

    params = [SamplingParams(seed=i, max_tokens=3 * i, temperature=i / 4) for i in range(5)]
    alone = [model.generate(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
    together = model.generate(prompts, params)
    assert [_essence(c) for c in together] == [_essence(c) for c in alone]
    ids = [_tokenizer(model).encode(prompt) for prompt in prompts]
    assert [_essence(c) for c in model.generate(ids, params)] == [_essence(c) for c in alone]

    assert model.generate([]) == []
    (one,) = model.generate(["Once"], seed=9, max_tokens=40)
    assert one.text == model.generate("Once", seed=9, max_tokens=40).text
    seeds = [c.seed for c in model.generate(["Once"] * 4, max_tokens=1)]
    assert len(set(seeds)) == 4  # a fresh one each


def test_options_change_params(model: Model) -> None:
    params = SamplingParams(seed=1, max_tokens=5)
    assert model.generate("Once", params, max_tokens=7).usage.completion_tokens == 7
    assert model.generate("Once", params).usage.completion_tokens == 5


def test_a_stream_says_what_generate_says(model: Model) -> None:
    for seed in range(20):
        whole = model.generate("Lily", seed=seed)
        chunks = list(model.stream("Lily", seed=seed))
        assert "".join(str(chunk) for chunk in chunks) == whole.text
        assert tuple(i for chunk in chunks for i in chunk.token_ids) == whole.token_ids
        *others, last = chunks
        assert last.completion is not None
        assert _essence(last.completion) == _essence(whole)
        assert last.finish_reason == whole.finish_reason
        assert all(c.finish_reason is None and c.completion is None for c in others)


def test_stop_strings_end_the_text_and_are_not_shown(model: Model) -> None:
    whole = model.generate("Lily", seed=4, max_tokens=60, ignore_eos=True)
    for start in range(0, len(whole.text) - 1, 3):
        for length in (1, 2, 5):
            stop = whole.text[start : start + length]
            expected = whole.text[: whole.text.index(stop)]
            options: dict[str, Any] = {
                "seed": 4, "max_tokens": 60, "ignore_eos": True, "stop": [stop, "no such text"],
            }  # fmt: skip
            completion = model.generate("Lily", **options)
            assert completion.text == expected
            assert completion.finish_reason == "stop"
            assert "".join(map(str, model.stream("Lily", **options))) == expected
            # Nothing was written beyond the token with which the stop string was complete.
            n = len(completion.token_ids)
            assert completion.token_ids == whole.token_ids[:n]
            assert completion.usage.completion_tokens == n
    assert model.generate("Lily", seed=4, stop="Lily", max_tokens=3).finish_reason == "length"


def test_bos_and_eos_end_a_text(model: Model) -> None:
    tokenizer = _tokenizer(model)
    for end in (tokenizer.bos_id, tokenizer.eos_id):
        bias = {end: 1e6}
        completion = model.generate("Lily", logit_bias=bias)
        assert (completion.text, completion.token_ids) == ("", ())
        assert completion.finish_reason == "stop"
        assert completion.usage.completion_tokens == 1
        ignoring = model.generate("Lily", logit_bias=bias, ignore_eos=True, max_tokens=4)
        assert ignoring.token_ids == (end,) * 4
        assert ignoring.text == ""
        assert ignoring.finish_reason == "length"
        both = model.generate(
            "Lily", logit_bias=bias, ignore_eos=True, stop_token_ids=[end], max_tokens=4
        )
        assert both.finish_reason == "stop"


def test_logit_bias_forces_and_forbids(model: Model) -> None:
    token = _tokenizer(model).piece_to_id("▁Lily")
    completion = model.generate("", logit_bias={token: 1e6}, max_tokens=5)
    assert completion.token_ids == (token,) * 5
    assert completion.text == "Lily" + " Lily" * 4
    free = model.generate("", seed=1, ignore_eos=True)
    banned = dict.fromkeys(free.token_ids, -1e6)
    other = model.generate("", seed=1, ignore_eos=True, logit_bias=banned)
    assert not set(other.token_ids) & set(free.token_ids)


def test_max_tokens_and_the_context(model: Model) -> None:
    context = model.config.max_seq_len
    nothing = model.generate("Lily", max_tokens=0)
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == ("", (), "length")
    for n in (1, context - 1, context):
        prompt = [5] * n
        full = model.generate(prompt, ignore_eos=True)
        assert full.finish_reason == "length"
        # The last position yields a token too, which has none of its own any more.
        assert full.usage.total_tokens == context + 1
        beyond = model.generate(prompt, ignore_eos=True, max_tokens=10**9)
        assert beyond.usage.total_tokens == context + 1
    with pytest.raises(CapacityError, match=f"{context + 1} tokens, at most {context}"):
        model.generate([5] * (context + 1))


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    params=st.builds(
        SamplingParams,
        seed=st.integers(0, 2**64 - 1),
        temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        top_p=st.floats(0, 1),
        top_k=st.integers(0, 500),
        max_tokens=st.just(12),
    ),
)
def test_streams_join_to_the_decoded_whole(model: Model, text: str, params: SamplingParams) -> None:
    chunks = list(model.stream(text, params))
    tokenizer = _tokenizer(model)
    prompt = tokenizer.encode(text)
    ids = prompt + [i for chunk in chunks for i in chunk.token_ids]
    assert tokenizer.decode(prompt) + "".join(map(str, chunks)) == tokenizer.decode(ids)


def test_closing_a_stream_stops_the_work(model: Model) -> None:
    for n in (0, 1, 3):
        stream = model.stream("Lily", seed=1)
        for _ in range(n):
            next(stream)
        stream.close()
        assert list(stream) == []
        stats = model._open_engine().stats()
        assert (stats["running"], stats["waiting"], stats["blocks_held"]) == (0, 0, 0)
    dropped = model.stream("Lily", seed=1)
    next(dropped)
    del dropped
    assert model._open_engine().stats()["running"] == 0


def test_what_was_written_takes_no_more_memory(speaker: Path) -> None:
    n_cached = {}
    for kv_memory in (None, "4MiB"):
        with Model(speaker, kv_memory=kv_memory) as model:
            for seed in range(60):
                model.generate("", seed=seed, temperature=2.0, max_tokens=40, ignore_eos=True)
            n_cached[kv_memory] = model._open_engine().stats()["blocks_cached"]
    # Two contexts of 6 blocks, and the two full ones of the last text; or all texts.
    assert 12 <= n_cached[None] <= 14
    assert n_cached["4MiB"] >= 100


def test_one_token_vocabulary(tmp_path: Path) -> None:
    config = models.CONFIGS["one token"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    with Model(path) as model:
        assert model.tokenizer is None
        for params in ({"temperature": 0}, {"seed": 1}, {"top_p": 1e-9}, {"top_k": 1}):
            completion = model.generate([0], max_tokens=3, **params)
            assert completion.token_ids == (0, 0, 0)
            assert completion.text == ""
        assert model.logits([0, 0]).shape == (2, 1)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([420], {}, "420"),
        ([-1], {}, "-1"),
        ([2**40], {}, str(2**40)),
        (None, {}, "prompt is None"),
        (np.array(3), {}, r"prompt is array\(3\)"),
        ([np.array(3)], {}, r"prompt holds array\(3\)"),
        (b"Once", {}, "prompt is b'Once'"),
        (bytearray(b"Once"), {}, "prompt is bytearray"),
        (memoryview(b"Once"), {}, "prompt is <memory"),
        ([5, 1.5], {}, "prompt holds 1.5, expected"),
        (np.array([5.0]), {}, "prompt holds .*5.0.*, expected"),
        ("\ud800", {}, "lone surrogate"),
        ("Once", {"temperature": float("nan")}, "temperature is nan"),
        ("Once", {"length": 3}, "unknown option 'length', expected temperature, "),
        ("Once", {"max_new_tokens": 3}, "did you mean max_tokens"),
        ("Once", {"repeat_penalty": 1.1}, "did you mean repetition_penalty"),
        ("Once", {"stop_token_ids": [420]}, "stop_token_ids names token 420"),
        ("Once", {"logit_bias": {420: 1}}, "logit_bias names token 420"),
        ("Once", {"params": 5}, "params is 5"),
    ],
)
def test_bad_arguments_are_named(
    model: Model, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.generate(prompt, **options)
    with pytest.raises(ArgumentError, match=message):  # at once, before anything is asked of it
        model.stream(prompt, **options)


def test_bad_lists_are_named(model: Model) -> None:
    for prompts, message in (
        ([[]], "prompt has no tokens"),
        ([0.5], "0.5"),
        ([None], "None"),
        ([b"Once"], "prompt is b'Once'"),
        ([[5], None], "prompt holds None"),
        ([5, [5]], "expected either token ids or a list"),
    ):
        with pytest.raises(ArgumentError, match=message):
            model.generate(prompts)  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="params has 2 entries, expected one for each of 1"):
        model.generate(["Once"], [SamplingParams()] * 2)


@pytest.mark.parametrize("ids", [b"ab", bytearray(b"ab"), memoryview(b"ab"), [1.0] * 1000])
def test_what_is_no_list_of_ids(model: Model, ids: Any) -> None:
    for call in (model.logits, model.log_probabilities):
        with pytest.raises(ArgumentError, match=r"^ids is .*, expected") as error:
            call(ids)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("ids", [[True, False], {1, 2}, {1: 2}, [5, 10**30]])
def test_what_is_no_id(model: Model, ids: Any) -> None:
    for call in (model.logits, model.log_probabilities):
        with pytest.raises(ArgumentError, match=r"^ids (is|holds) .*, expected"):
            call(ids)


def test_ids_may_come_one_by_one(model: Model) -> None:
    expected = model.logits([5, 6, 7])
    np.testing.assert_array_equal(model.logits(iter([5, 6, 7])), expected)  # type: ignore[arg-type]
    options: Any = {"temperature": 0, "max_tokens": 3}
    one = model.generate([5, 6], **options).token_ids
    assert [text.token_ids for text in model.generate([iter([5, 6])], **options)] == [one]  # type: ignore[call-overload]


def test_a_bad_prompt_takes_no_other_with_it(model: Model) -> None:
    with pytest.raises(CapacityError):
        model.generate([[5], [5] * 1000])
    assert model._open_engine().stats()["running"] == 0
    with pytest.raises(ArgumentError, match="list of prompts"):
        model.stream(["Once"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_threads": 0}, "n_threads is 0"),
        ({"n_threads": 2000}, "n_threads is 2000"),
        ({"n_threads": True}, "n_threads is True"),
        ({"dtype": "float8"}, "dtype is 'float8', expected"),
        ({"dtype": np.float32}, "dtype is <class 'numpy.float32'>, expected"),
        ({"dtype": None}, "dtype is None, expected"),
        ({"kv_dtype": "int4"}, "kv_dtype is 'int4', expected"),
        ({"max_sequences": 0}, "max_sequences is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"kv_memory": "1 parsec"}, "kv_memory is '1 parsec'"),
        ({"kv_memory": 100}, "kv_memory is 100 bytes, expected at least"),
        ({"kv_memory": "9" * 400}, "kv_memory is .999"),
        ({"kv_memory": 2**63}, "kv_memory is 9223372036854775808, expected bytes"),
    ],
)
def test_bad_models_are_named(speaker: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Model(speaker, **options)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    with Model(path) as model:
        assert model.generate("", seed=1).usage.prompt_tokens == 1
        with pytest.raises(TokenizerError, match="no tokenizer was found next to"):
            model.generate("Once")
        with pytest.raises(ArgumentError, match="stop is"):
            model.generate([1], stop="x")


def test_a_tokenizer_that_does_not_fit(speaker: Path, tmp_path: Path) -> None:
    config = models.CONFIGS["untied"]
    path = models.write_v0(tmp_path / "model.bin", config, models.random_tensors(config))
    with pytest.raises(TokenizerError, match=r"420 pieces.* has 96"):
        Model(path, tokenizer=speaker.parent / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"420 pieces.* has 96"):
        Model(path, tokenizer=Tokenizer.load(speaker.parent / "tokenizer.model"))


def test_a_closed_model(speaker: Path) -> None:
    model = Model(speaker)
    stream = model.stream("Lily", seed=1)
    whole = model.generate("Lily", seed=1).text
    model.close()
    model.close()
    for call in (model.generate, model.stream, model.logits):
        with pytest.raises(ClosedError):
            call([1])
    with pytest.raises(ClosedError):
        model.info()
    assert "".join(map(str, stream)) == whole  # what is going on may end
