"""Random requests and the texts that they must give, whoever else is served."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllama2c import Engine, Event, Model, Request

WORDS = [
    "Once upon a time",
    " Lily",
    " the little dog",
    "小兔子说：",
    "你好",
    " 🐰",
    ". ",
    "\n",
    " park",
]


@dataclass
class Case:
    """A request and its text when nobody else is served."""

    prompt: str
    options: dict[str, Any]
    text: str
    reason: str


def random_cases(model: Model, n: int, seed: int = 0) -> list[Case]:
    """Requests of every kind; some begin alike."""
    rng = random.Random(seed)
    cases = []
    for _ in range(n):
        prompt = "".join(rng.choices(WORDS, k=rng.randint(0, 6)))
        options: dict[str, Any] = {"seed": rng.getrandbits(32), "max_tokens": rng.randint(0, 40)}
        if rng.random() < 0.2:
            options["max_tokens"] = None
        options["temperature"] = rng.choice([0, 0.7, 1.0, 1.5])
        options["top_p"] = rng.choice([0.5, 0.9, 1.0])
        options["top_k"] = rng.choice([0, 0, 10])
        if rng.random() < 0.3:
            options["repetition_penalty"] = 1.3
        if rng.random() < 0.4:
            options["stop"] = rng.choice([["e"], [" t", "莉"], ["。", "."]])
        alone = model.generate(prompt, **options)
        cases.append(Case(prompt, options, alone.text, alone.finish_reason))
    return cases


def seconds(function: Callable[..., object], *arguments: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def run(engine: Engine, budget_ms: float | None = None, most_steps: int = 100_000) -> list[Event]:
    """Step until nothing is left to do."""
    events: list[Event] = []
    for _ in range(most_steps):
        events += engine.step(budget_ms)
        stats = engine.stats()
        if not stats.running and not stats.waiting:
            return events + engine.step(budget_ms)
    raise AssertionError(f"still at work after {most_steps} steps: {engine.stats()}")


def texts_of(events: list[Event]) -> dict[Request, str]:
    """What the events told of each request."""
    texts: dict[Request, str] = {}
    for event in events:
        texts[event.request] = texts.get(event.request, "") + event.text
    return texts


def expect_nothing_held(engine: Engine) -> None:
    """No request is left, and no block of the cache is lost or held."""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_held) == (0, 0, 0)
    assert engine._open_core is not None
    assert engine._open_core.consistent()
