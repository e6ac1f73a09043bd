"""Saving and restoring sessions: exact, in the middle of everything, and safe against any bytes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import engine_helpers as helpers
import models
import pytest

from pyllama2c import Engine, Model, RestoreError, SamplingParams
from pyllama2c.config import ModelConfig
from pyllama2c.saved import _checksum

RICH = SamplingParams(
    temperature=0.8,
    top_k=50,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.1,
    logit_bias={7: -3.5, 9: 2},
    seed=2**64 - 1,
    max_tokens=50,
    stop=["莉莉。", "\x00"],
    stop_token_ids=[11],
    ignore_eos=True,
)


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


@pytest.fixture
def engine(model: Model) -> Engine:
    return Engine(model)


def test_everything_is_kept(engine: Engine) -> None:
    session = engine.session("小兔子 🐰", prefix="Once", params=RICH, overflow="slide")
    session.send("Lily", max_tokens=5)
    restored = engine.restore(session.save())
    assert restored._state == session._state
    assert restored.params == RICH
    assert restored.history == session.history
    assert restored.save() == session.save()
    assert restored.send("你好").token_ids == session.send("你好").token_ids
    assert len(session.save()) < 600


@pytest.mark.parametrize("overflow", ["stop", "slide"])
@pytest.mark.parametrize("seed", range(4))
def test_a_text_goes_on_after_any_of_its_tokens(engine: Engine, overflow: str, seed: int) -> None:
    # Random weights speak in bytes, so many of these places are inside characters.
    n = 150 if overflow == "slide" else 80
    options = {"params": SamplingParams(seed=seed, max_tokens=n, ignore_eos=True)}
    session = engine.session("x", prefix="Lily", overflow=overflow, **options)
    blobs, told = [], [""]
    for chunk in session.stream(" said"):
        assert len(chunk.token_ids) <= 1
        told.append(told[-1] + chunk.text)
        blobs.append(session.save())
    completion = chunk.completion
    assert completion is not None
    assert any(len(a) == len(b) for a, b in pairwise(told))  # inside characters
    for i, blob in enumerate(blobs):
        restored = engine.restore(blob)
        if i == len(blobs) - 1:
            assert not restored.unfinished
            assert restored.history == session.history
            continue
        assert restored.unfinished
        rest = "".join(chunk.text for chunk in restored.stream())
        assert told[i + 1] + rest == told[-1]
        assert restored.history == session.history
        assert restored.save() == blobs[-1]


def test_the_completion_is_that_of_the_whole_text(engine: Engine) -> None:
    session = engine.session(seed=3)
    stream = session.stream("Once", max_tokens=30, ignore_eos=True, stop=["zzz"])
    for _ in range(10):
        next(stream)
    restored = engine.restore(session.save())
    (*_, last) = stream
    assert last.completion is not None
    completion = restored.send()
    assert (completion.text, completion.token_ids) == (
        last.completion.text,
        last.completion.token_ids,
    )
    assert (completion.seed, completion.usage) == (last.completion.seed, last.completion.usage)
    # The speed is that of the 20 tokens that were computed here.
    timings = completion.timings
    assert timings.tokens_per_second == pytest.approx(19 / timings.decode_seconds)


def test_a_stop_string_across_the_cut_is_found(engine: Engine) -> None:
    whole = engine.model.generate("Once", seed=5, max_tokens=40, ignore_eos=True).text
    stop = whole[10:16]
    session = engine.session(seed=5)
    told, blobs = [], []
    for chunk in session.stream("Once", max_tokens=40, ignore_eos=True, stop=stop):
        told.append(chunk.text)
        blobs.append(session.save())
    for i, blob in enumerate(blobs[:-1]):
        rest = [chunk.text for chunk in engine.restore(blob).stream()]
        assert "".join(told[: i + 1] + rest) == "".join(told)


def test_an_unfinished_text_keeps_its_parameters(engine: Engine) -> None:
    session = engine.session(seed=3)
    stream = session.stream("Once", temperature=0.5, ignore_eos=True)
    next(stream)
    restored = engine.restore(session.save())
    with pytest.raises(ValueError, match="its own parameters"):
        restored.send(temperature=1.0)
    assert restored.unfinished


def test_requests_in_steps_are_saved_too(engine: Engine) -> None:
    session = engine.session(seed=3)
    request = session.submit("Once", max_tokens=20, ignore_eos=True)
    told = "".join(event.text for _ in range(5) for event in engine.step())
    restored = engine.restore(session.save())
    helpers.run(engine)
    again = restored.submit()
    rest = helpers.texts_of(helpers.run(engine))[again]
    assert told + rest == request.text == again.text


_CHILD = """
import sys
from pyllama2c import Engine, Model
with Model(sys.argv[1]) as model, Engine(model, n_threads=1, prefill_chunk=7) as engine:
    session = engine.restore(sys.stdin.buffer.read())
    first = session.send() if session.unfinished else None
    second = session.send(" 🐰", max_tokens=9)
    ids = [*(first.token_ids if first else ()), *second.token_ids]
    sys.stdout.write(" ".join(map(str, ids)))
"""


@pytest.mark.parametrize("n_chunks", [0, 1, 14])
def test_another_process_goes_on(engine: Engine, n_chunks: int) -> None:
    session = engine.session(prefix="Once", seed=8, overflow="slide")
    stream = session.stream("Lily", max_tokens=40, ignore_eos=True)
    for _ in range(n_chunks):
        next(stream)
    blob = session.save()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(engine.model.path)],
        input=blob,
        capture_output=True,
        check=True,
    )
    (*_, last) = stream
    assert last.completion is not None
    expected = [*last.completion.token_ids, *session.send(" 🐰", max_tokens=9).token_ids]
    assert [int(i) for i in child.stdout.split()] == expected


def test_other_engines_are_refused(engine: Engine, model: Model, tmp_path: Path) -> None:
    blob = engine.session("x", prefix="Once", seed=1).save()
    config = ModelConfig(64, 80, 2, 4, 2, model.config.vocab_size, 96)
    path = models.write_v0(tmp_path / "other.bin", config, models.random_tensors(config, seed=1))
    other = Model(path, tokenizer=model.tokenizer)
    with other, pytest.raises(RestoreError, match="another model"):
        Engine(other).restore(blob)
    with Model(model.path, dtype="int8") as other, pytest.raises(RestoreError, match="model"):
        Engine(other).restore(blob)
    bare = tmp_path / "bare.bin"
    bare.write_bytes(model.path.read_bytes())
    with Model(bare) as other, pytest.raises(RestoreError, match="tokenizer"):
        Engine(other).restore(blob)
    with pytest.raises(RestoreError, match="kv_dtype 'float32'"):
        Engine(model, kv_dtype="int8").restore(blob)
    with pytest.raises(RestoreError, match="hold 96 tokens, here they hold 48"):
        Engine(model, kv_memory=3 * 16 * 512).restore(blob)
    with Model(model.path) as same:
        assert Engine(same).restore(blob).name == "x"


def test_damage_is_told(engine: Engine) -> None:
    blob = engine.session("x", prefix="Once", seed=1).save()
    for damaged, message in [
        (b"", "no saved session"),
        (b"PK" + blob, "no saved session"),
        (blob[:9], "truncated"),
        (blob[:4] + b"\x02" + blob[5:], "version 2"),
        (blob[:-1], "damaged"),
        (blob + b"\0", "damaged"),
        (blob[:30] + bytes([blob[30] ^ 1]) + blob[31:], "damaged"),
    ]:
        with pytest.raises(RestoreError, match=message):
            engine.restore(damaged)
    with pytest.raises(RestoreError, match="str"):
        engine.restore("text")  # type: ignore[arg-type]


@pytest.mark.slow
def test_hostile_bytes_are_refused_or_harmless(engine: Engine) -> None:
    # Half of the mutations get a right checksum, as somebody who means harm would give them.
    session = engine.session("name", prefix="Once", params=RICH, overflow="slide")
    session.send("Lily", max_tokens=5)
    stream = session.stream("你好", max_tokens=20)
    for _ in range(4):
        next(stream)
    blob = session.save()
    stream.close()
    rng = random.Random(7)
    n_accepted = 0
    for i in range(100_000):
        content = bytearray(blob[:-8])
        for _ in range(rng.randint(1, 4)):
            kind, at = rng.randrange(4), rng.randrange(4, len(content) - 1)
            if kind == 0:
                content[at] = rng.randrange(256)
            elif kind == 1:
                del content[at : at + rng.randint(1, 20)]
            elif kind == 2:
                content[at:at] = rng.randbytes(rng.randint(1, 12))
            else:
                content[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            if len(content) < 40:
                break
        data = bytes(content)
        data += _checksum(data) if i % 2 else blob[-8:]
        try:
            restored = engine.restore(data)
        except RestoreError:
            continue
        n_accepted += 1
        if n_accepted % 20 == 0:  # what is accepted can be used
            request = restored.submit()
            engine.step()
            request.cancel()
            restored.save()
    assert n_accepted > 100
    helpers.expect_nothing_held(engine)
