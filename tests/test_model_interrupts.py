"""One Model in many threads, the GIL, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllama2c import Model


@pytest.fixture(scope="module")
def endless(talkative: Path) -> Iterator[Model]:
    """A model that writes for minutes if nobody stops it."""
    with Model(talkative, kv_memory="1GiB", prefill_chunk=128) as model:
        yield model


def _consume(model: Model) -> None:
    for _ in model.stream("Lily", temperature=0):
        pass


CALLS: dict[str, Callable[[Model], Any]] = {
    "generate": lambda model: model.generate("Lily", temperature=0),
    "generate with stop": lambda model: model.generate("Lily", temperature=0, stop="no such text"),
    "stream": _consume,
    "list": lambda model: model.generate(["Lily", "Once", ""], temperature=0),
    "prompt": lambda model: model.generate([5] * 30000),
    "logits": lambda model: model.logits([5] * 30000),
}


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_stops_within_a_token(endless: Model, name: str) -> None:
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](endless)
    took = time.monotonic() - sent[0]
    timer.join()
    assert took < 1  # a token takes milliseconds; the whole text takes minutes
    stats = endless._open_engine().stats()
    assert (stats["running"], stats["waiting"], stats["blocks_held"]) == (0, 0, 0)
    assert endless.generate("Lily", max_tokens=2, temperature=0).usage.completion_tokens == 2


def test_ctrl_c_reaches_the_main_thread_while_others_compute(endless: Model) -> None:
    """The main thread waits for a pass that another thread computes."""
    stop = threading.Event()

    def other() -> None:
        for _ in endless.stream("Once", temperature=0):
            if stop.is_set():
                return

    thread = threading.Thread(target=other)
    thread.start()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        endless.generate("Lily", temperature=0)
    assert time.monotonic() - start < 3
    timer.join()
    assert thread.is_alive()  # its text was not ours to end
    stop.set()
    thread.join()


def test_a_handler_may_generate(endless: Model) -> None:
    texts = []

    def handler(*_: object) -> None:
        texts.append(endless.generate("Lily", max_tokens=2, temperature=0).text)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        start = time.monotonic()
        while not texts:
            endless.generate(["Lily", "Once"], temperature=0, max_tokens=20)
            assert time.monotonic() - start < 60
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert texts == [endless.generate("Lily", max_tokens=2, temperature=0).text]


def test_the_gil_is_released(endless: Model) -> None:
    """Other Python threads run while one computes."""
    counted: list[int] = []
    computing = threading.Event()

    def count() -> None:
        n = 0
        while not computing.is_set():
            time.sleep(0.001)
            n += 1
        counted.append(n)

    thread = threading.Thread(target=count)
    thread.start()
    endless.generate("Lily", temperature=0, max_tokens=30)
    endless.logits([5] * 60)
    computing.set()
    thread.join()
    assert counted[0] > 10


def test_many_threads_each_get_their_own(speaker: Path) -> None:
    with Model(speaker, max_sequences=3, n_threads=2) as model:
        expected = [model.generate(f"{i} Lily", seed=i) for i in range(12)]
        logits = [model.logits([1 + i, 2, 3]) for i in range(12)]
        wrong: list[object] = []

        def work(i: int) -> None:
            for _ in range(5):
                if model.generate(f"{i} Lily", seed=i).text != expected[i].text:
                    wrong.append(i)
                if "".join(map(str, model.stream(f"{i} Lily", seed=i))) != expected[i].text:
                    wrong.append(i)
                if not np.array_equal(model.logits([1 + i, 2, 3]), logits[i]):
                    wrong.append(i)
                next(model.stream("Once", seed=i)).text  # and one that is dropped  # noqa: B018

        threads = [threading.Thread(target=work, args=[i]) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert model._open_engine().consistent()
        assert model._open_engine().stats()["blocks_held"] == 0
