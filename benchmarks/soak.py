"""A long day at a game server: whether memory stays flat, no block is lost and no text is wrong.

Players connect and disconnect, read slowly, talk to characters that are saved, restored and
forked in mid-sentence, send damaged blobs and wrong arguments; beside them a game loop steps an
engine of its own whose cache is too small for all. Every text is compared with the one written
alone, before the day began.

    python benchmarks/soak.py --minutes 30
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name, report

from pyllama2c import (
    ArgumentError,
    AsyncEngine,
    AsyncSession,
    CapacityError,
    Completion,
    Engine,
    Model,
    Overloaded,
    Request,
    RestoreError,
)

WORLD = "从前，森林边上有一个小村子，村子里住着许多小动物，大家都很友好。"
LINES = [
    "小兔子说：“你好！”",
    "小猫问：“你去哪里？”",
    "天黑了。",
    "\n第二天，",
    "🐰🌙",
    "爷爷笑着说：",
]


@dataclass
class Case:
    """A request, and what it must say."""

    prompt: str
    options: dict[str, Any]
    alone: Completion


@dataclass
class Tale:
    """What a character is told, and what it must answer."""

    seed: int
    lines: list[str]
    answers: list[str]


def main() -> None:
    """Print one JSON line; exit with status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[default: the one that comes with the package]")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--players", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    if args.smoke:
        args.minutes, args.players = 0.05, 6
    with Model(args.model) as model:
        asyncio.run(Day(model, args).live())


class Day:
    """Everything that happens, and how it went."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.model = model
        self.args = args
        self.rng = random.Random(args.seed)
        self.counts: Counter[str] = Counter()
        n = 20 if args.smoke else 200
        self.cases = self._make_cases(n)
        self.tales = self._make_tales(n // 10)
        self.end = 0.0

    def _make_cases(self, n: int) -> list[Case]:
        rng = self.rng
        cases = []
        for _ in range(n):
            prompt = WORLD * rng.randint(0, 1) + "".join(rng.choices(LINES, k=rng.randint(0, 3)))
            options = {
                "seed": rng.getrandbits(32),
                "max_tokens": rng.randint(0, 60),
                "temperature": rng.choice([0, 0.8, 1.2]),
                "stop": rng.choice([(), ("。",), ("”", "！")]),
            }
            cases.append(Case(prompt, options, self.model.generate(prompt, **options)))
        return cases

    def _make_tales(self, n: int) -> list[Tale]:
        tales = []
        with Engine(self.model) as engine:
            for i in range(n):
                session = engine.session(prefix=WORLD, seed=i, overflow="slide", max_tokens=30)
                lines = self.rng.choices(LINES, k=12)
                answers = [session.send(line, ignore_eos=True).text for line in lines]
                tales.append(Tale(i, lines, answers))
        return tales

    async def live(self) -> None:
        """Let everybody play until the day is over, then count."""
        self.end = time.monotonic() + 60 * self.args.minutes
        block_bytes = Engine(self.model)._block_bytes
        async with AsyncEngine(
            self.model,
            max_sequences=16,
            kv_memory=200 * block_bytes,
            max_waiting=self.args.players // 2,
            max_unread=12,
            preallocate=True,
        ) as engine:
            small = Engine(self.model, max_sequences=6, kv_memory=40 * block_bytes)
            memory = asyncio.create_task(self._watch_memory())
            await asyncio.gather(
                self._game_loop(small), *(self._player(engine) for _ in range(self.args.players))
            )
            for each in (engine._engine, small):
                stats = each.stats()
                self.counts["leaked_blocks"] += stats.blocks_held
                self.counts["inconsistent"] += not each._live().consistent()
                self.counts["preemptions"] += stats.preempted
                self.counts["generated_tokens"] += stats.generated_tokens
            slope, error, rss = await memory
        wrong = self.counts["wrong"] + self.counts["leaked_blocks"] + self.counts["inconsistent"]
        report(
            benchmark="soak",
            minutes=self.args.minutes,
            players=self.args.players,
            rss_mb=rss,
            rss_slope_mb_per_hour=slope,
            rss_slope_error_mb_per_hour=error,
            wrong_texts=self.counts.pop("wrong", 0),
            **dict(sorted(self.counts.items())),
            cpu=cpu_name(),
        )
        raise SystemExit(1 if wrong else 0)

    def _check(self, right: bool, what: str) -> None:
        self.counts["texts"] += 1
        if not right:
            self.counts["wrong"] += 1
            report(wrong=what)

    async def _player(self, engine: AsyncEngine) -> None:
        acts = [self._listen, self._disconnect, self._read_slowly, self._converse, self._err]
        while time.monotonic() < self.end:
            try:
                await self.rng.choice(acts)(engine)
            except Overloaded:
                self.counts["overloaded"] += 1
                await asyncio.sleep(0.01 * self.rng.random())

    async def _listen(self, engine: AsyncEngine) -> None:
        case = self.rng.choice(self.cases)
        priority = self.rng.randint(-1, 1)
        said = await engine.generate(case.prompt, priority=priority, **case.options)
        self._check(said.text == case.alone.text, f"listen {case}")

    async def _disconnect(self, engine: AsyncEngine) -> None:
        case = self.rng.choice(self.cases)
        if self.rng.random() < 0.5:
            task = asyncio.create_task(engine.generate(case.prompt, **case.options))
            await asyncio.sleep(0.05 * self.rng.random())
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            heard = ""
            async for chunk in engine.stream(case.prompt, **case.options):
                heard += chunk.text
                if self.rng.random() < 0.2:
                    break
            self._check(case.alone.text.startswith(heard), f"disconnect {case}")
        self.counts["disconnects"] += 1

    async def _read_slowly(self, engine: AsyncEngine) -> None:
        case = self.rng.choice(self.cases)
        heard = ""
        async with engine.stream(case.prompt, deadline_ms=60_000, **case.options) as stream:
            async for chunk in stream:
                heard += chunk.text
                await asyncio.sleep(0.02 * self.rng.random())
        ended = stream.completion is not None and stream.completion.finish_reason != "deadline"
        right = heard == case.alone.text if ended else case.alone.text.startswith(heard)
        self._check(right, f"read slowly {case}")

    async def _converse(self, engine: AsyncEngine) -> None:
        tale = self.rng.choice(self.tales)
        session = engine.session(
            prefix=engine.prefix(WORLD), seed=tale.seed, overflow="slide", max_tokens=30
        )
        for line, answer in zip(tale.lines, tale.answers, strict=True):
            session, heard = await self._answer(engine, session, line)
            self._check(heard == answer, f"tale {tale.seed} {line}: {heard} instead of {answer}")
            if heard != answer:
                return

    async def _answer(
        self, engine: AsyncEngine, session: AsyncSession, line: str
    ) -> tuple[AsyncSession, str]:
        """The session may be another one in the end: restored, or a fork."""
        heard = ""
        while True:
            copy = None
            # Where a text was interrupted, nothing more is said, and the copy tells its end.
            stream = (
                session.stream() if session.unfinished else session.stream(line, ignore_eos=True)
            )
            async with stream:
                async for chunk in stream:
                    heard += chunk.text
                    if chunk.finish_reason is None and self.rng.random() < 0.1:
                        saved = self.rng.random() < 0.7
                        copy = engine.restore(session.save()) if saved else session.fork()
                        self.counts["restores"] += saved
                        break
            if copy is None:
                return session, heard
            session = copy

    async def _err(self, engine: AsyncEngine) -> None:
        blob = bytearray(engine.session("victim", prefix=WORLD, seed=1).save())
        blob[self.rng.randrange(len(blob))] ^= 1 << self.rng.randrange(8)

        def fail(text: str) -> str:
            raise KeyError(text)

        try:
            match self.rng.randrange(4):
                case 0:
                    engine.stream("x", temperature=-1)
                case 1:
                    engine.stream([5] * 10_000)
                case 2:
                    engine.restore(bytes(blob))
                case 3:
                    await engine.generate(WORLD, deadline_ms=0, on_deadline=fail)
        except (ArgumentError, CapacityError, RestoreError, KeyError):
            self.counts["errors"] += 1
        else:
            self._check(False, "an error that was none")

    async def _game_loop(self, engine: Engine) -> None:
        running: dict[Request, Case] = {}
        while time.monotonic() < self.end:
            if len(running) < 20:
                case = self.rng.choice(self.cases)
                running[
                    engine.submit(case.prompt, priority=self.rng.randint(0, 3), **case.options)
                ] = case
            if self.rng.random() < 0.02:
                request = self.rng.choice(list(running))
                request.cancel()
                case = running.pop(request)
                self._check(
                    case.alone.text.startswith(request.text.rstrip("\ufffd")), f"cancel {case}"
                )
            for event in engine.step(2):
                if event.finish_reason is not None:
                    case = running.pop(event.request)
                    self._check(event.request.text == case.alone.text, f"game loop {case}")
            await asyncio.sleep(0.002)
        for request in running:
            request.cancel()

    async def _watch_memory(self) -> tuple[float, float, float]:
        """Resident memory: its slope in the second half, the error of that, the last sample.

        In the first half Python's allocator still finds the most it ever needs at once. The error
        is that of the mean of the slopes of ten parts: samples next to each other are not
        independent, as a fit's own error takes them to be.
        """
        start = time.monotonic()
        pause = min(1.0, 0.6 * self.args.minutes)
        samples = np.ones((int(60 * self.args.minutes / pause) + 2, 2))  # memory of its own: now
        n = 0
        while time.monotonic() < self.end and n < len(samples):
            await asyncio.sleep(pause)
            samples[n] = (time.monotonic() - start) / 3600, _resident_mb()
            n += 1
        half = samples[n // 2 : n]
        slopes = [_slope(part) for part in np.array_split(half, 10) if len(part) > 1]
        slope = _slope(half) if len(half) > 1 else 0.0
        error = np.std(slopes) / np.sqrt(len(slopes)) if slopes else 0.0
        return slope, float(error), float(samples[n - 1, 1])


def _slope(samples: np.ndarray) -> float:
    return float(np.polyfit(samples[:, 0], samples[:, 1], 1)[0])


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
