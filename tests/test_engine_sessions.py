"""`Session` and `Prefix`: a history that is computed again exactly, shared, forked, slid."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import engine_helpers as helpers
import pytest

from pyllama2c import (
    ArgumentError,
    BusyError,
    CapacityError,
    ClosedError,
    Engine,
    Model,
    Session,
    Turn,
)

WORLD = "Once upon a time there was a little girl named Lily."
OPTIONS = {"ignore_eos": True, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


def test_each_answer_continues_all_that_was_said(model: Model) -> None:
    session = Engine(model).session("Lily", prefix="Once", seed=5)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids, seed = tokenizer.encode("Once"), None
    for text in (" 你好", "\nLily", " 🐰"):
        ids += tokenizer.encode_continuation(text)
        answer = session.send(text, **OPTIONS)
        assert answer.seed != seed if seed else answer.seed == 5  # a stream that begins there
        alone = model.generate(ids, seed=answer.seed, **OPTIONS)
        assert answer.token_ids == alone.token_ids
        ids, seed = [*ids, *answer.token_ids], answer.seed
        assert session.ids == tuple(ids)
        assert session.history[-1].said == text
    assert session.text == tokenizer.decode(ids)
    assert session.name == "Lily"
    assert session.nbytes == -(-len(ids) // 16) * 16 * 2 * 2 * 32 * 4
    assert "Lily" in repr(session)


def test_the_first_text_begins_as_a_prompt_does(model: Model) -> None:
    engine = Engine(model)
    answer = engine.session(seed=1).send("Lily", **OPTIONS)
    assert answer.text == model.generate("Lily", seed=1, **OPTIONS).text
    assert engine.session(seed=1).send(**OPTIONS).text == model.generate("", seed=1, **OPTIONS).text


def test_the_random_stream_is_one(model: Model) -> None:
    engine = Engine(model)
    one, two = engine.session(seed=9), engine.session(seed=9)
    for _ in range(3):
        assert one.send(" a", **OPTIONS).token_ids == two.send(" a", **OPTIONS).token_ids
    again = engine.session(seed=1, prefix=list(one.ids))
    assert again.send(" b", seed=7, **OPTIONS).text == one.send(" b", seed=7, **OPTIONS).text
    assert one.send(" c", **OPTIONS).text == again.send(" c", **OPTIONS).text
    assert one.send(" d", seed=None, **OPTIONS).seed != again.send(" d", seed=None, **OPTIONS).seed


def test_three_ways_to_talk_say_the_same(model: Model) -> None:
    engine = Engine(model)
    sent, streamed, submitted = (engine.session(seed=3) for _ in range(3))
    expected = sent.send("Once", **OPTIONS)
    chunks = list(streamed.stream("Once", **OPTIONS))
    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert chunks[-1].completion is not None
    request = submitted.submit("Once", **OPTIONS)
    told = helpers.texts_of(helpers.run(engine))
    assert told[request] == request.text == expected.text
    assert sent.history == streamed.history == submitted.history == [Turn("Once", expected.text)]


def test_one_text_at_a_time(model: Model) -> None:
    engine = Engine(model)
    session = engine.session("Tim", seed=1)
    stream = session.stream("Once", **OPTIONS)
    assert session.busy
    for talk in (session.send, session.stream, session.submit):
        with pytest.raises(BusyError, match="Tim"):
            talk("x")
    heard = next(stream).text
    stream.close()
    assert not session.busy
    assert session.history == [Turn("Once", heard)]
    session.submit("more", **OPTIONS)
    session.cancel()
    session.cancel()
    assert session.history[1:] == [Turn("more", "")]
    helpers.expect_nothing_held(engine)


def test_what_is_cut_off_is_not_remembered(model: Model) -> None:
    engine = Engine(model)
    for seed in range(20):
        whole = model.generate("Once", seed=seed, max_tokens=30, ignore_eos=True).text
        stop = whole[len(whole) // 2 :][:2]
        session = engine.session(seed=seed)
        answer = session.send("Once", max_tokens=30, ignore_eos=True, stop=stop)
        assert answer.finish_reason == "stop"
        assert stop not in answer.text
        assert session.history == [Turn("Once", answer.text)]
        assert session.text == "Once" + answer.text
    session = engine.session(seed=1)
    late = session.send("Once", deadline_ms=0, on_deadline="我不知道。", ignore_eos=True)
    assert (late.text, late.finish_reason) == ("我不知道。", "deadline")
    assert session.history == [Turn("Once", "我不知道。")]


def test_on_deadline_may_cancel_and_begin_anew(model: Model) -> None:
    engine = Engine(model)
    session = engine.session("x", overflow="slide", seed=1)

    def on_deadline(text: str) -> str:
        session.cancel()
        session.submit("Lily", max_tokens=3, ignore_eos=True)
        return "x"

    first = session.submit("Once", deadline_ms=30, on_deadline=on_deadline, ignore_eos=True)
    events = helpers.run(engine, 5)
    told, answered = helpers.texts_of(events).items()
    assert told == (first, first.text)
    assert [event.finish_reason for event in events][-1] == "length"
    assert first.finish_reason == "cancelled"
    assert session.history[-1] == Turn("Lily", answered[1])
    assert not session.busy
    helpers.expect_nothing_held(engine)


def test_half_a_character_stays_with_the_answer_it_ends(model: Model) -> None:
    assert model.tokenizer is not None
    names = [model.tokenizer.id_to_piece(i) for i in range(model.tokenizer.vocab_size)]
    half = {names.index("<0xE4>"): 1000.0}
    session = Engine(model).session(seed=1)
    for text in ("Once", "Lily", "🐰"):
        session.send(text, max_tokens=1, logit_bias=half)
    expected = [Turn(text, "\ufffd") for text in ("Once", "Lily", "🐰")]
    assert session.history == expected


def test_a_prefix_is_shared_and_found_by_content(model: Model) -> None:
    engine = Engine(model, prefill_chunk=32)
    world = engine.prefix(WORLD)
    persona = world.extend(" She loved to play outside.")
    assert persona.ids[: len(world)] == world.ids
    assert len(persona) > len(world)
    first = engine.session(prefix=persona, seed=1)
    first.send(" Hi", **OPTIONS)
    before = engine.stats()
    second = engine.session(prefix=engine.prefix(WORLD).extend(" The dog was big."), seed=2)
    second.send(" Hi", **OPTIONS)
    assert engine.stats().since(before).cached_tokens >= len(world) // 16 * 16
    assert first.text.startswith(WORLD + " She loved to play outside. Hi")
    alone = Engine(model).session(prefix=WORLD + " The dog was big.", seed=2)
    assert alone.text == second.text[: len(alone.text)]
    assert engine.session(prefix=[]).ids == ()


def test_a_cold_cache_changes_nothing(model: Model) -> None:
    engine = Engine(model, kv_memory=7 * 16 * 512)  # seven blocks: nothing stays for long
    roomy = Engine(model)
    names = [str(i) for i in range(8)]
    squeezed = [engine.session(name, prefix=WORLD, seed=i) for i, name in enumerate(names)]
    warm = [roomy.session(name, prefix=WORLD, seed=i) for i, name in enumerate(names)]
    rng = random.Random(1)
    for _ in range(40):
        i = rng.randrange(8)
        if len(warm[i].ids) > 80:
            continue
        assert squeezed[i].send(" 你", **OPTIONS).text == warm[i].send(" 你", **OPTIONS).text
    assert engine.stats().prefix_hit_rate < roomy.stats().prefix_hit_rate
    helpers.expect_nothing_held(engine)


def test_a_fork_goes_its_own_way(model: Model) -> None:
    engine = Engine(model)
    session = engine.session("Lily", prefix=WORLD, seed=1)
    session.send(" Hi", **OPTIONS)
    twin, other = session.fork(), session.fork("other")
    assert (twin.name, other.name) == ("Lily", "other")
    answers = [s.send(" Go", **OPTIONS).text for s in (session, twin)]
    assert answers[0] == answers[1]
    other.send(" Stay", **OPTIONS)
    assert session.history == twin.history
    assert other.history[0] == session.history[0]
    assert other.history[1].said == " Stay"


def test_a_fork_in_the_middle_of_a_text_tells_its_end(model: Model) -> None:
    engine = Engine(model)
    session = engine.session(seed=4)
    stream = session.stream("Once", max_tokens=30, ignore_eos=True)
    heard = "".join(next(stream).text for _ in range(9))
    twin = session.fork()
    assert twin.unfinished
    assert not session.unfinished
    whole = heard + "".join(chunk.text for chunk in stream)
    rest = "".join(chunk.text for chunk in twin.stream())
    assert heard + rest == whole
    assert twin.history == session.history == [Turn("Once", whole)]


def test_a_new_text_ends_an_unfinished_one(model: Model) -> None:
    engine = Engine(model)
    session = engine.session(seed=4)
    stream = session.stream("Once", max_tokens=30, ignore_eos=True)
    heard = "".join(next(stream).text for _ in range(9))
    twin = session.fork()
    stream.close()
    assert twin.send(" Stop!", **OPTIONS).text == session.send(" Stop!", **OPTIONS).text
    assert twin.history[0] == Turn("Once", heard)
    assert twin.history == session.history
    assert twin.ids == session.ids


def test_a_full_context_stops_or_slides(model: Model) -> None:
    engine = Engine(model)
    stops = engine.session(prefix=WORLD, seed=1)
    slides = engine.session(prefix=WORLD, seed=1, overflow="slide")
    with pytest.raises(CapacityError, match="at most 96"):
        [stops.send(" 你好", **OPTIONS) for _ in range(30)]
    assert not stops.busy
    n_prefix = len(engine.prefix(WORLD))
    for _ in range(30):
        slides.send(" 你好", **OPTIONS)
        assert len(slides.ids) <= 96 + 6
    assert slides.text.startswith(WORLD)
    assert slides.history[-1].said == " 你好"
    tokens = sum(slides._state.turns[-1])
    assert 0 < tokens <= 96
    assert sum(map(sum, slides._state.turns)) == len(slides.ids) - n_prefix
    with pytest.raises(CapacityError, match="at most 94"):
        engine.session(prefix=[5] * 95)


@pytest.mark.parametrize("length", [40, 93, 94, 95, 96, 97, 98, 120, 300])
def test_a_slid_context_is_what_the_engine_slides_to(model: Model, length: int) -> None:
    # The same text in one request, which slides inside the engine, and in two, between which the
    # session slides.
    engine = Engine(model)
    whole, parts = (engine.session(prefix=[1, 7], seed=2, overflow="slide") for _ in range(2))
    text = list(range(5, 45))
    one = whole.send(text, max_tokens=length + 50, ignore_eos=True)
    first = parts.send(text, max_tokens=length, ignore_eos=True)
    second = parts.send(None, max_tokens=50, ignore_eos=True)
    assert first.token_ids + second.token_ids == one.token_ids


@pytest.mark.parametrize("length", [94, 96, 97, 150, 1000])
def test_sliding_at_once_is_sliding_half_by_half(model: Model, length: int) -> None:
    said = [5 + i % 40 for i in range(length)]
    session = Engine(model).session(prefix=[1, 7], overflow="slide")
    expected = [1, 7, *said]
    while len(expected) > 96:
        del expected[2 : 2 + 47]
    assert session._state.context_with(said, 96)[0] == expected


def test_a_full_session_says_so(model: Model) -> None:
    session = Engine(model).session("Lily", seed=1)
    session.send([5] * 90, max_tokens=4, ignore_eos=True)
    with pytest.raises(CapacityError, match=r"the session 'Lily' has \d+ tokens .*slide"):
        session.send("Hello")
    assert not session.busy


def test_requests_know_whose_they_are(model: Model) -> None:
    engine = Engine(model)
    session = engine.session("Lily", seed=1)
    requests = {session.submit("Hi", max_tokens=3), engine.submit("Hi", max_tokens=3)}
    assert {request.session for request in requests} == {session, None}
    helpers.run(engine)


def test_a_stream_may_close_the_engine_at_its_end(model: Model) -> None:
    engine = Engine(model)
    for chunk in engine.session(seed=1).stream("Hi", max_tokens=3, ignore_eos=True):
        if chunk.finish_reason:
            engine.close()


@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_a_session_can_be_saved_at_any_line(
    model: Model, overflow: Literal["stop", "slide"]
) -> None:
    """As the handler of a signal may do."""
    engine = Engine(model)
    session = engine.session(seed=1, overflow=overflow)
    blobs = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "pyllama2c" not in frame.f_code.co_filename:
            return None
        if "saved" in frame.f_code.co_filename or frame.f_code.co_name == "save":
            return None
        sys.settrace(None)
        blobs.add(session.save())
        sys.settrace(trace)
        return trace

    if overflow == "slide":
        session.send([5] * 80, max_tokens=1, ignore_eos=True)
    sys.settrace(trace)
    try:
        for text in ("Once", " upon", " a time"):
            stream = session.stream(text, max_tokens=35, ignore_eos=True)
            for _ in range(15):
                next(stream)
            session = session.fork()  # which has a half-written text, which the next one ends
    finally:
        sys.settrace(None)
    assert len(blobs) > 10
    for blob in blobs:
        engine.restore(blob).send("", max_tokens=1, ignore_eos=True)


def test_a_prefix_is_of_one_vocabulary(model: Model) -> None:
    with Model() as other, pytest.raises(ArgumentError, match="another tokenizer"):
        Engine(model).session(prefix=Engine(other).prefix("你好"))


def test_sessions_talk_from_many_threads(model: Model) -> None:
    engine = Engine(model)
    alone = [engine.session(seed=i).send("Once", max_tokens=40).text for i in range(12)]
    texts: list[str] = [""] * 12

    def talk(i: int) -> None:
        texts[i] = engine.session(seed=i).send("Once", max_tokens=40).text

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == alone


def test_a_stream_can_be_cancelled_and_closed_from_another_thread(speaker: Path) -> None:
    with Model(speaker) as model, Engine(model) as engine:
        session = engine.session(seed=1, overflow="slide")
        threading.Timer(0.05, session.cancel).start()
        assert session.send("Once", ignore_eos=True).finish_reason == "cancelled"
        threading.Timer(0.05, engine.close).start()
        with pytest.raises(ClosedError):
            session.send("Once", ignore_eos=True)


def test_an_abandoned_stream_is_cancelled(model: Model) -> None:
    engine = Engine(model)
    session = engine.session(seed=1)
    for _ in session.stream("Once", ignore_eos=True):
        break
    assert not session.busy
    helpers.expect_nothing_held(engine)


def test_without_a_tokenizer_there_are_ids(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model.path.read_bytes())
    with Model(path) as bare:
        assert bare.tokenizer is None
        session: Session = Engine(bare).session(seed=1)
        answer = session.send([5, 6], **OPTIONS)
        assert answer.token_ids == model.generate([1, 5, 6], seed=1, **OPTIONS).token_ids
        assert session.history == [Turn("", "")]
        assert session.ids == (1, 5, 6, *answer.token_ids)
        with pytest.raises(ArgumentError, match="prefix holds token 420"):
            session._engine.session(prefix=[1, 420])


def test_without_a_tokenizer_a_deadline_cuts_nothing_off(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model.path.read_bytes())
    with Model(path) as bare, Engine(bare) as engine:
        session = engine.session(overflow="slide")
        request = session.submit([5], deadline_ms=50, ignore_eos=True)
        told = [i for event in helpers.run(engine, 5) for i in event.chunk.token_ids]
        assert request.completion is not None
        assert request.completion.finish_reason == "deadline"
        assert list(request.completion.token_ids) == told
        assert session.ids == (1, 5, *told)
