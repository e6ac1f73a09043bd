"""Forked, spawned, killed and exiting processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import engine_helpers as helpers
import pytest

from pyllama2c import Chunk, ClosedError, Engine, Model

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


def in_child(work: Callable[[], object], seconds: float = 60) -> None:
    """Run something in a forked process; fails if it fails or takes too long."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


@contextlib.contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Do each of them again and again, in a thread of its own."""
    stop = threading.Event()

    def again_and_again(work: Callable[[], object]) -> None:
        while not stop.is_set():
            work()

    threads = [threading.Thread(target=again_and_again, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_children_generate_after_their_parent_did(model: Model) -> None:
    engine = Engine(model, n_threads=2)
    session = engine.session(seed=2)
    session.send("Once", max_tokens=10)
    expected = model.generate("Lily", seed=1, max_tokens=20).text
    running = engine.submit("Lily", seed=1, max_tokens=20)
    engine.step()
    fork = session.fork()
    answer = fork.send(" Hi", max_tokens=10).text

    def child() -> None:
        assert model.generate("Lily", seed=1, max_tokens=20).text == expected
        helpers.run(engine)
        assert running.text == expected
        assert session.send(" Hi", max_tokens=10).text == answer
        with Model(model.path) as own:
            assert own.generate("Lily", seed=1, max_tokens=20).text == expected

    for _ in range(3):
        in_child(child)
    child()


def test_children_generate_while_their_parent_does(model: Model) -> None:
    expected = model.generate("Lily", seed=1, max_tokens=20).text
    engine = Engine(model)

    def compute() -> None:
        model.generate("Once", max_tokens=50)
        request = engine.submit("Once", max_tokens=50)
        while not request.done:
            engine.step(3)

    def child() -> None:
        assert model.generate("Lily", seed=1, max_tokens=20).text == expected
        assert engine.session(seed=1).send("Lily", max_tokens=20).text == expected
        engine.close()
        Model(model.path).generate("Once", max_tokens=3)

    with meanwhile(compute, compute):
        for _ in range(20):
            in_child(child)


def test_a_childs_own_threads_step(model: Model) -> None:
    engine = Engine(model, n_threads=1)

    def step() -> None:
        engine.submit("Once", max_tokens=20)
        while engine.step():
            pass

    def child() -> None:  # whose new thread may well be called what the dead one was
        errors: list[BaseException] = []

        def work() -> None:
            try:
                request = engine.submit("Lily", max_tokens=3)
                while not request.done:
                    engine.step()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not errors

    with meanwhile(step):
        for _ in range(10):
            in_child(child)


def test_a_stream_does_not_hang_in_a_child(model: Model) -> None:
    def compute() -> None:
        model.generate("Once", max_tokens=50)

    def child(stream: Generator[Chunk, None, None]) -> None:
        with contextlib.suppress(ClosedError):  # unless nobody computed as it forked
            for _ in stream:
                pass

    with meanwhile(compute):
        for seed in range(10):
            stream = model.stream("Lily", seed=seed, ignore_eos=True)
            next(stream)
            in_child(partial(child, stream))
            stream.close()


def _generate(path: str) -> str:
    with Model(path) as model, Engine(model) as engine:
        return engine.session(seed=1).send("Lily", max_tokens=20).text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(model: Model, method: str) -> None:
    expected = model.generate("Lily", seed=1, max_tokens=20).text
    with multiprocessing.get_context(method).Pool(2) as pool:
        texts = pool.map_async(_generate, [str(model.path)] * 4).get(timeout=120)
    assert texts == [expected] * 4


_ENDINGS = {
    "everything alive": "",
    "model first": "model.close()",
    "deleted in any order": "del model; del engine; del session, stream",
    "cycles": "engine.me = engine; model.me = engine; session.me = [stream, model]",
    "in another thread": """
import threading
def work():
    for _ in session.fork().stream("x", ignore_eos=True): pass
threading.Thread(target=work).start()
engine.close() if time.sleep(0.05) is None else None
""",
    # Prompts of ids: to encode is sentencepiece's work, which aborts when Python ends meanwhile.
    "in daemon threads": """
import threading
def forever(work):
    while True: work()
for work in (
    lambda: session.fork().send([5, 6], max_tokens=5, ignore_eos=True),
    lambda: model.generate([5, 6], max_tokens=5),
    lambda: model.logits([5, 6] * 40),
    lambda: other.step(budget_ms=2),
    lambda: other.step(),
):
    threading.Thread(target=forever, args=[work], daemon=True).start()
time.sleep(0.1)
""",
    "an exception": "raise SystemExit(0)",
}


@pytest.mark.parametrize("ending", _ENDINGS)
def test_the_interpreter_exits_with_live_engines(model: Model, ending: str) -> None:
    code = f"""
import sys, time
from pyllama2c import ClosedError, Engine, Model
model = Model({str(model.path)!r})
engine, other = Engine(model), Engine(model)
session = engine.session(seed=1, overflow="slide")
request = other.submit("Once", ignore_eos=True)
other.step()
stream = session.stream("Once", ignore_eos=True)
next(stream)
{_ENDINGS[ending]}
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if ending == "in another thread":
        assert "the engine is closed" in result.stderr
    else:
        assert (result.returncode, result.stderr) == (0, "")


def _tell_and_be_killed(model: Model, pipe: int) -> None:
    """Write the saved session to the pipe after each piece of a text, until somebody kills us."""
    session = Engine(model, n_threads=1).session(prefix="Lily", seed=6, overflow="slide")
    for _ in session.stream(" 🐰", max_tokens=600, ignore_eos=True):
        blob = session.save()
        os.write(pipe, struct.pack("<I", len(blob)) + blob)


def _last_whole(data: bytes) -> bytes | None:
    blob, position = None, 0
    while position + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, position)
        if position + 4 + length > len(data):
            break
        blob = data[position + 4 : position + 4 + length]
        position += 4 + length
    return blob


@pytest.mark.slow
def test_a_killed_story_goes_on_in_a_new_process(model: Model) -> None:
    session = Engine(model).session(prefix="Lily", seed=6, overflow="slide")
    whole = session.send(" 🐰", max_tokens=600, ignore_eos=True)
    ids = session.ids
    n_saved = 600 * (4 + len(session.save()) // 2)  # about what a child writes if it may
    rng = random.Random(5)
    cuts = set()
    for _ in range(200):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _tell_and_be_killed(model, writing)
            os._exit(0)
        os.close(writing)
        data = bytearray()
        n_bytes = rng.randrange(200, n_saved)
        while len(data) < n_bytes and (part := os.read(reading, 4096)):
            data += part
        os.kill(pid, signal.SIGKILL)
        while part := os.read(reading, 1 << 16):  # what it had written when it was killed
            data += part
        os.close(reading)
        os.waitpid(pid, 0)
        blob = _last_whole(bytes(data))
        assert blob is not None

        def go_on(blob: bytes = blob) -> None:
            restored = Engine(model).restore(blob)
            if restored.unfinished:
                assert restored.send().text == whole.text
            assert restored.ids == ids

        in_child(go_on)
        cuts.add(blob)
    assert len(cuts) > 140
