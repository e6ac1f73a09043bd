"""`AsyncEngine`: streams for tasks, cancelled and closed at any moment, never blocking the loop."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import engine_helpers as helpers
import pytest

from pyllama2c import (
    ArgumentError,
    AsyncEngine,
    BusyError,
    CapacityError,
    ClosedError,
    Engine,
    Model,
    Overloaded,
    Stream,
)

ENDLESS: dict[str, Any] = {"ignore_eos": True, "overflow": "slide"}


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


def expect_nothing_held(engine: AsyncEngine) -> None:
    helpers.expect_nothing_held(engine._engine)


def test_streams_tell_what_is_written_alone(model: Model) -> None:
    cases = helpers.random_cases(model, 100)

    async def listen(engine: AsyncEngine, case: helpers.Case, delay: float) -> None:
        await asyncio.sleep(delay)
        told, last = "", None
        async for chunk in engine.stream(case.prompt, **case.options):
            told += str(chunk)
            last = chunk
        assert told == case.text
        assert last is not None
        assert last.completion is not None
        assert last.completion.text == case.text
        assert last.finish_reason == case.reason

    async def main(**options: Any) -> None:
        rng = random.Random(3)
        async with AsyncEngine(model, **options) as engine:
            await asyncio.gather(*(listen(engine, case, rng.random() / 5) for case in cases))
            expect_nothing_held(engine)
            completion = await engine.generate(cases[0].prompt, **cases[0].options)
            assert completion.text == cases[0].text

    asyncio.run(main())
    asyncio.run(main(max_sequences=3, kv_memory=13 * 16 * 512, n_threads=1, max_unread=1))


def test_sessions_answer_as_those_of_engine_do(model: Model) -> None:
    async def main() -> None:
        plain = Engine(model).session("Lily", prefix="Once", seed=1)
        async with AsyncEngine(model) as engine:
            prefix = engine.prefix("Once")
            session = engine.session("Lily", prefix=prefix, seed=1)
            for text in (" Hi", " 你好"):
                answer = await session.send(text, max_tokens=9)
                assert answer.token_ids == plain.send(text, max_tokens=9).token_ids
            told = [chunk.text async for chunk in session.stream(" a", max_tokens=9)]
            assert "".join(told) == plain.send(" a", max_tokens=9).text
            assert session.history == plain.history
            assert session.save() == plain.save()
            restored = engine.restore(session.save())
            twin = session.fork("twin")
            texts = [(await s.send(" b", max_tokens=9)).text for s in (session, restored, twin)]
            assert len(set(texts)) == 1
            assert twin.name == "twin"

    asyncio.run(main())


def test_a_stream_is_saved_in_the_middle(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model, max_unread=3) as engine:
            session = engine.session(seed=2)
            told, blob = [], b""
            async for chunk in session.stream("Once", max_tokens=30, ignore_eos=True):
                told.append(chunk.text)
                if len(told) == 5:
                    blob = session.save()
            restored = engine.restore(blob)
            rest = [chunk.text async for chunk in restored.stream()]
            assert "".join(told[:5] + rest) == "".join(told)

    asyncio.run(main())


def test_leaving_the_block_cancels(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model) as engine:
            session = engine.session(seed=1, overflow="slide")
            async with session.stream("Once", ignore_eos=True) as stream:
                async for _ in stream:
                    break
            assert not session.busy
            expect_nothing_held(engine)
            async for chunk in session.stream("Once", ignore_eos=True):
                heard = chunk.text
                break
            assert not session.busy
            assert session.history[-1].said == "Once"
            assert session.history[-1].answer.startswith(heard)  # half a character may follow
            expect_nothing_held(engine)
            async with aclosing(engine.stream("Once", **ENDLESS)) as stream:
                await stream.__anext__()
            expect_nothing_held(engine)
            with pytest.raises(KeyError):
                async with session.stream("Once", ignore_eos=True) as stream:
                    raise KeyError
            assert not session.busy

    asyncio.run(main())


@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.1])
def test_cancelling_the_task_cancels_the_text(model: Model, delay: float) -> None:
    async def listen(stream: Stream) -> None:
        async for _ in stream:
            await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncEngine(model, prefill_chunk=2) as engine:
            session = engine.session(seed=1, overflow="slide")
            tasks = [
                asyncio.create_task(listen(session.stream("Once" * 15, ignore_eos=True))),
                asyncio.create_task(engine.generate("Once" * 15, **ENDLESS)),
                asyncio.create_task(engine.session(overflow="slide").send(ignore_eos=True)),
            ]
            await asyncio.sleep(delay)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert not session.busy
            expect_nothing_held(engine)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(engine.generate("Once", **ENDLESS), 0.05)
            expect_nothing_held(engine)
            assert (await engine.generate("Once", max_tokens=3, ignore_eos=True)).text

    asyncio.run(main())


def test_cancelling_another_way_ends_the_stream(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model) as engine:
            session = engine.session(seed=1, overflow="slide")
            task = asyncio.create_task(session.send("Once", ignore_eos=True))
            await asyncio.sleep(0.02)
            assert session.busy
            with pytest.raises(BusyError):
                await session.send("x")
            session.cancel()
            assert (await task).finish_reason == "cancelled"
            stream = engine.stream("Once", **ENDLESS)
            asyncio.get_running_loop().call_later(0.02, stream.cancel)
            assert "".join([chunk.text async for chunk in stream]) == stream.text

    asyncio.run(main())


def test_a_task_may_read_any_number_of_streams(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model) as engine:
            task: Any = asyncio.current_task()
            before = len(task._callbacks or ())
            for i in range(20):
                async for _ in engine.stream("Once", max_tokens=3, ignore_eos=True):
                    if i % 2:
                        break
                assert await engine.generate("Once", max_tokens=3)
            assert len(task._callbacks or ()) == before  # none is kept

    asyncio.run(main())


def test_a_slow_reader_is_not_computed_for(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model, max_unread=10) as engine:
            slow = engine.stream("Once", seed=1, max_tokens=200, **ENDLESS)
            first = await slow.__anext__()
            await asyncio.sleep(0.3)
            n_tokens = engine.stats().generated_tokens
            assert 10 <= n_tokens <= len(first.token_ids) + 10
            quick = await engine.generate("Once", seed=1, max_tokens=200, **ENDLESS)
            assert quick.usage.completion_tokens == 200
            assert engine.stats().generated_tokens == n_tokens + 200
            rest = "".join([chunk.text async for chunk in slow])
            assert first.text + rest == quick.text

    asyncio.run(main())


def test_the_event_loop_is_never_blocked(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model, n_threads=1) as engine:
            tasks = [
                asyncio.create_task(engine.generate("Once", max_tokens=300, **ENDLESS))
                for _ in range(30)
            ]
            gaps, last = [], time.perf_counter()
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
            assert len(gaps) > 50
            assert sorted(gaps)[len(gaps) // 2] < 0.02

    asyncio.run(main())


def test_errors_come_at_once(model: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(model, max_sequences=1, max_waiting=1) as engine:
            with pytest.raises(ArgumentError, match="temperature"):
                engine.stream("Once", temperature=-1)
            with pytest.raises(CapacityError):
                engine.stream([5] * 97)
            streams = [engine.stream("Once", **ENDLESS) for _ in range(2)]
            with pytest.raises(Overloaded):
                engine.stream("Once")
            late = engine.session(seed=1)
            with pytest.raises(Overloaded):
                await late.send("Once")
            assert not late.busy
            assert late.history == []
            for stream in streams:
                await stream.aclose()
            answer = await late.send("Once", deadline_ms=0, on_deadline="嗯。", ignore_eos=True)
            assert (answer.text, answer.finish_reason) == ("嗯。", "deadline")
        with pytest.raises(ArgumentError, match="max_unread"):
            AsyncEngine(model, max_unread=0)

    asyncio.run(main())


def test_without_an_event_loop_nothing_is_said(model: Model) -> None:
    session = AsyncEngine(model).session(prefix="Once")
    with pytest.raises(RuntimeError, match="no running event loop"):
        session.stream("Lily")
    assert session.history == []


def test_a_stream_has_one_reader_at_a_time(model: Model) -> None:
    async def main() -> None:
        # With one chunk ahead at most, the first reader has to wait, however busy the machine is.
        async with AsyncEngine(model, max_unread=1) as engine:
            stream = engine.stream("Once", max_tokens=20, ignore_eos=True)

            async def read() -> str:
                return "".join([chunk.text async for chunk in stream])

            told = await asyncio.gather(read(), read(), return_exceptions=True)
            assert sum(isinstance(part, BusyError) for part in told) == 1
            assert stream.completion is not None
            assert stream.completion.finish_reason == "length"

    asyncio.run(main())


def test_a_failing_on_deadline_reaches_the_reader(model: Model) -> None:
    def fail(text: str) -> str:
        raise KeyError(text)

    async def main() -> None:
        async with AsyncEngine(model) as engine:
            with pytest.raises(KeyError):
                await engine.generate("Once", deadline_ms=0, on_deadline=fail, **ENDLESS)
            assert await engine.generate("Once", max_tokens=3)
            expect_nothing_held(engine)

    asyncio.run(main())


def test_a_failed_pass_ends_its_texts_and_no_others(model: Model) -> None:
    class Failing:
        def __init__(self, core: object) -> None:
            self.core, self.fails = core, 1

        def __getattr__(self, name: str) -> object:
            return getattr(self.core, name)

        def compute(self, seconds: float) -> object:
            self.fails -= 1
            if self.fails == 0:
                raise MemoryError("no more")
            return self.core.compute(seconds)  # type: ignore[attr-defined]

    async def main() -> None:
        async with AsyncEngine(model) as engine:
            core = engine._engine._open_core
            engine._engine._open_core = Failing(core)  # type: ignore[assignment]
            with pytest.raises(MemoryError, match="no more"):
                await engine.generate("Once", max_tokens=5)
            text = await engine.generate("Once", seed=1, max_tokens=5)
            assert text.text == model.generate("Once", seed=1, max_tokens=5).text
            engine._engine._open_core = core
            expect_nothing_held(engine)

    asyncio.run(main())


def test_closing_tells_those_who_wait(speaker: Path) -> None:
    async def main(close_model: bool) -> None:
        model = Model(speaker)
        engine = AsyncEngine(model)
        tasks = [asyncio.create_task(engine.generate("Once", **ENDLESS)) for _ in range(3)]
        await asyncio.sleep(0.02)
        if close_model:
            model.close()
        else:
            await engine.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ClosedError)
        await engine.close()
        with pytest.raises(ClosedError):
            engine.stream("Once")
        with pytest.raises(ClosedError):
            engine.session()

    asyncio.run(main(False))
    asyncio.run(main(True))


def test_one_event_loop_after_the_other(model: Model) -> None:
    engine = AsyncEngine(model)
    session = engine.session(seed=1, overflow="slide")

    async def leave_something() -> str:
        stream = session.stream("Once", ignore_eos=True)
        return (await stream.__anext__()).text

    async def talk() -> str:
        return (await session.send(" Hi", max_tokens=10)).text

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            asyncio.run(leave_something())
            assert asyncio.run(talk())
            asyncio.run(talk())
    expect_nothing_held(engine)
    asyncio.run(engine.close())


def test_a_process_may_end_with_everything_in_progress(model: Model) -> None:
    code = f"""
import asyncio
from pyllama2c import AsyncEngine, Model
model = Model({str(model.path)!r})
engine = AsyncEngine(model)
async def main():
    global stream
    stream = engine.stream("Once", ignore_eos=True, overflow="slide")
    async for chunk in stream:
        break
    asyncio.create_task(engine.generate("Once", ignore_eos=True, overflow="slide"))
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_anew(model: Model) -> None:
    engine = AsyncEngine(model)
    expected = model.generate("Once", seed=1, max_tokens=20).text

    async def parent() -> int:
        streams = [engine.stream("Once", **ENDLESS) for _ in range(4)]
        await streams[0].__anext__()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio._set_running_loop(None)
                text = asyncio.run(engine.generate("Once", seed=1, max_tokens=20)).text
                expect_nothing_held(engine)
                status = int(text != expected)
            finally:
                os._exit(status)
        for stream in streams:
            stream.cancel()
        return pid

    for _ in range(5):
        pid = asyncio.run(parent())
        assert os.waitpid(pid, 0)[1] == 0
    asyncio.run(engine.close())
