"""What the benchmarks ask of an engine.

An engine lives in a process of its own (`worker.py`), perhaps in another virtual environment, so
its module imports the engine's packages only inside its methods.
"""

from __future__ import annotations

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

WIDTHS = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Source:
    """The model to run, in the formats that the engines convert from."""

    checkpoint: Path
    """llama2.c v0, float32."""
    hf: Path
    """The same weights as a Hugging Face directory, with a tokenizer.json."""


@dataclass(frozen=True)
class Setup:
    """How to load an engine."""

    width: str
    """Of the weights: one of the engine's `widths`."""
    threads: int
    n_sequences: int
    """Most sequences in one batch."""
    context: int
    """Tokens of the longest sequence, prompt and new ones together."""
    shared: tuple[int, ...] = ()
    """What all prompts begin with, for a `Server`: to be computed once."""


class Engine(ABC):
    """One engine with the model loaded at one width."""

    widths: ClassVar[tuple[str, ...]] = WIDTHS
    """Those it can hold weights in."""
    setting: str
    """What was chosen where there was a choice: for the result's line."""

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Of the engine's package. Raises ImportError where it is not installed."""

    @classmethod
    @abstractmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Convert the model, unless that was done before.

        Returns:
            What `__init__` takes: a file or directory next to the source.
        """

    @abstractmethod
    def __init__(self, path: Path, setup: Setup) -> None:
        """Load what `prepare` gave."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Continue every prompt greedily by exactly `new_tokens`, all in one batch; none ends it.

        Nothing of an earlier call is reused.
        """


def run_python(*arguments: str | Path) -> None:
    """Run a converter with this interpreter; what it prints goes to stderr."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)


@dataclass(frozen=True)
class Request:
    """A text that somebody asks a `Server` for."""

    arrival: float
    """Seconds after the start."""
    prompt: list[int]
    new_tokens: int


class Server(Engine):
    """An engine that lets requests join and leave its batch at every step.

    One that is loaded with `Setup.shared` computes that beginning of all prompts once.
    """

    @abstractmethod
    def submit(self, index: int, request: Request) -> None:
        """Queue the request with this number."""

    @abstractmethod
    def step(self) -> list[tuple[int, int]]:
        """Compute for a moment; returns for requests with news how many tokens they got."""

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Serve requests as they arrive, until all are complete.

        Args:
            requests: sorted by arrival, counted from now.

        Returns:
            For each request the seconds after the start at which its tokens were there.
        """
        times: list[list[float]] = [[] for _ in requests]
        missing = sum(request.new_tokens for request in requests)
        arrived = started = 0
        start = time.perf_counter()
        while missing:
            now = time.perf_counter() - start
            while arrived < len(requests) and requests[arrived].arrival <= now:
                self.submit(arrived, requests[arrived])
                started += requests[arrived].new_tokens
                arrived += 1
            if not started:
                time.sleep(max(requests[arrived].arrival - now, 0))
                continue
            news = self.step()
            now = time.perf_counter() - start
            for index, n_tokens in news:
                times[index] += [now] * n_tokens
                missing -= n_tokens
                started -= n_tokens
        return times
