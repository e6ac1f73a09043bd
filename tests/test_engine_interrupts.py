"""Signals whose handlers raise, as Ctrl-C does: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import engine_helpers as helpers
import pytest

from pyllama2c import Engine, Model


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


def test_an_interrupt_loses_no_events(model: Model) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    rng = random.Random(5)
    engine = Engine(model, n_threads=1)
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    try:
        for _ in range(40):
            requests = [engine.submit("Once", seed=seed, **options) for seed in range(4)]
            for _ in range(1000):
                if all(request.done for request in requests):
                    break
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-3))
                    engine.step(budget_ms=1)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupt:
                    interrupts += 1
            assert all(request.done for request in requests)
            for seed, request in enumerate(requests):
                alone = model.generate("Once", seed=seed, **options).text
                assert alone == request.text or request.finish_reason == "cancelled"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 10


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("requests.py", "__init__"),
        ("session_state.py", "begin"),
        ("engine.py", "_finish"),
        ("engine.py", "_stream"),
    ],
)
def test_an_interrupt_as_a_text_begins_leaves_nothing(
    model: Model, file: str, function: str
) -> None:
    def interrupt(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == function and code.co_filename.endswith(file):
            sys.setprofile(None)
            raise KeyboardInterrupt

    engine = Engine(model)
    for call in ("send", "stream", "submit"):
        session = engine.session(seed=1, overflow="slide")
        reached = False
        sys.setprofile(interrupt)
        try:
            getattr(session, call)("Once", ignore_eos=True, max_tokens=5)
        except KeyboardInterrupt:
            reached = True
        finally:
            sys.setprofile(None)
        assert reached or (call != "send" and file == "engine.py")
        assert not (reached and session.busy)
        session.cancel()
        assert not engine._requests
        helpers.expect_nothing_held(engine)
        completion = session.send("Lily", max_tokens=5, ignore_eos=True)
        assert completion.usage.completion_tokens == 5
