"""Any order of everything that can be done with an engine, against texts written alone."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import engine_helpers as helpers
import models
import vocabularies
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from pyllama2c import BusyError, Engine, Model, Overloaded, Request, Session
from pyllama2c.config import ModelConfig

PROMPTS = ["", "Once", "Once upon a time there was a little girl", "小兔子说：", "🐰" * 3]


@lru_cache
def tiny_model() -> Model:
    """As small as a model that speaks can be: 48 tokens of context, 3 blocks."""
    folder = Path(tempfile.mkdtemp())
    vocabulary = vocabularies.train("byte fallback")
    (folder / "tokenizer.model").write_bytes(vocabulary)
    config = ModelConfig(8, 12, 1, 2, 1, len(vocabularies.pieces(vocabulary)), 48)
    path = models.write_v0(folder / "model.bin", config, models.random_tensors(config))
    return Model(path, n_threads=1)


@lru_cache(maxsize=10_000)
def alone(prompt: str, seed: int, max_tokens: int, stop: str) -> str:
    stops = [stop] if stop else []
    return (
        tiny_model()
        .generate(prompt, seed=seed, max_tokens=max_tokens, stop=stops, ignore_eos=True)
        .text
    )


@lru_cache
def roomy_engine() -> Engine:
    """Where sessions say what they say when they are alone."""
    return Engine(tiny_model())


seeds = st.integers(0, 3)


class AnythingGoes(RuleBasedStateMachine):
    """An engine of a few blocks, and what its requests and sessions must say."""

    requests = Bundle("requests")
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.expected: dict[Request, str] = {}
        self.told: dict[Request, str] = {}

    @precondition(lambda self: self.engine is None)
    @rule(
        max_sequences=st.integers(1, 4),
        prefill_chunk=st.integers(1, 40),
        n_blocks=st.integers(3, 12),
        max_waiting=st.none() | st.integers(0, 4),
    )
    def start(self, n_blocks: int, **options: Any) -> None:
        per_block = roomy_engine()._block_bytes
        self.engine = Engine(tiny_model(), kv_memory=n_blocks * per_block, **options)

    @precondition(lambda self: self.engine is not None)
    @rule(
        target=requests,
        prompt=st.sampled_from(PROMPTS),
        seed=seeds,
        max_tokens=st.integers(0, 30),
        stop=st.sampled_from(["", "e", "a", "你"]),
        priority=st.integers(-1, 1),
        late=st.sampled_from([None, None, 0, 100_000]),
    )
    def submit(
        self,
        *,
        prompt: str,
        seed: int,
        max_tokens: int,
        stop: str,
        priority: int,
        late: float | None,
    ) -> Request | None:
        assert self.engine is not None
        try:
            request = self.engine.submit(
                prompt,
                seed=seed,
                max_tokens=max_tokens,
                stop=[stop] if stop else [],
                ignore_eos=True,
                priority=priority,
                deadline_ms=late,
            )
        except Overloaded:
            return None
        self.expected[request] = alone(prompt, seed, max_tokens, stop)
        return request

    @rule(request=consumes(requests))
    def cancel(self, request: Request | None) -> None:
        if request is not None:
            request.cancel()

    @precondition(lambda self: self.engine is not None)
    @rule(budget_ms=st.sampled_from([None, 0, 0.01, 0.1, 2]))
    def step(self, budget_ms: float | None) -> None:
        assert self.engine is not None
        for event in self.engine.step(budget_ms):
            self.told[event.request] = self.told.get(event.request, "") + event.text

    @precondition(lambda self: self.engine is not None)
    @rule(target=sessions, seed=seeds, prefix=st.sampled_from(PROMPTS))
    def meet(self, seed: int, prefix: str) -> list[Session]:
        assert self.engine is not None
        return [
            engine.session(prefix=prefix, seed=seed, overflow="slide")
            for engine in (self.engine, roomy_engine())
        ]

    @rule(pair=sessions, text=st.sampled_from(PROMPTS), max_tokens=st.integers(0, 30))
    def say(self, pair: list[Session], text: str, max_tokens: int) -> None:
        try:
            answers = [s.send(text, max_tokens=max_tokens, ignore_eos=True) for s in pair]
        except (Overloaded, BusyError):
            return
        assert answers[0].token_ids == answers[1].token_ids
        assert pair[0].history == pair[1].history

    @rule(pair=sessions, text=st.sampled_from(PROMPTS), n_chunks=st.integers(0, 20))
    def interrupt(self, pair: list[Session], text: str, n_chunks: int) -> None:
        try:
            streams = [s.stream(text, max_tokens=20, ignore_eos=True) for s in pair]
        except Overloaded:
            return
        for _ in range(n_chunks):
            ids = [next(stream, None) for stream in streams]
            assert ids[0] == ids[1] or (ids[0] and ids[0].completion)
        blob = pair[0].save()
        for stream in streams:
            stream.close()
        assert self.engine is not None
        restored = self.engine.restore(blob)
        assert restored.ids == pair[0].ids == pair[1].ids

    @rule(target=sessions, pair=sessions)
    def fork(self, pair: list[Session]) -> list[Session]:
        return [session.fork() for session in pair]

    @rule(pair=sessions)
    def save_and_restore(self, pair: list[Session]) -> None:
        assert self.engine is not None
        pair[0] = self.engine.restore(pair[0].save())

    @invariant()
    def texts_are_those_written_alone(self) -> None:
        for request, expected in self.expected.items():
            text = self.told.get(request, "")
            if request.done and request.finish_reason in ("stop", "length"):
                assert request.text == text == expected
            else:
                assert expected.startswith(text.rstrip("\ufffd"))

    @invariant()
    def no_block_is_lost(self) -> None:
        if self.engine is not None:
            assert self.engine._open_core is not None
            assert self.engine._open_core.consistent()

    def teardown(self) -> None:
        if self.engine is None:
            return
        for event in helpers.run(self.engine):
            self.told[event.request] = self.told.get(event.request, "") + event.text
        self.texts_are_those_written_alone()
        helpers.expect_nothing_held(self.engine)
        self.engine.close()


AnythingGoes.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestAnythingGoes = AnythingGoes.TestCase
