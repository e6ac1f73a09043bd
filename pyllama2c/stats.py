"""`EngineStats`: what an engine has done and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from pyllama2c import _core
from pyllama2c.errors import ArgumentError, shown


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long, in buckets 19 % wide."""

    counts: tuple[int, ...]
    """Bucket 0 ends at 10 microseconds; the last one is endless."""

    @property
    def count(self) -> int:
        """How many were measured."""
        return sum(self.counts)

    def __repr__(self) -> str:
        return (
            f"<Histogram of {self.count}: p50 {self.percentile(50):.2g} s, "
            f"p99 {self.percentile(99):.2g} s>"
        )

    @property
    def edges(self) -> tuple[float, ...]:
        """Where each bucket but the last ends, in seconds."""
        return tuple(
            _core.HISTOGRAM_FIRST_SECONDS * 2 ** (i / _core.HISTOGRAM_PER_OCTAVE)
            for i in range(len(self.counts) - 1)
        )

    def percentile(self, percent: float) -> float:
        """The seconds that `percent` of the measured did not exceed, to the bucket's upper edge.

        0.0 if nothing was measured. Raises ArgumentError unless `percent` is from 0 to 100.
        """
        if not isinstance(percent, Real) or not 0 <= percent <= 100:
            raise ArgumentError(f"percent is {shown(percent)}, expected 0 to 100")
        rank, seen = self.count * percent / 100, 0
        for n, edge in zip(self.counts, self.edges, strict=False):
            seen += n
            if seen and seen >= rank:
                return edge
        return self.edges[-1] if self.count else 0.0

    def since(self, earlier: Histogram) -> Histogram:
        """What was measured after `earlier`. Raises ArgumentError unless that is one, too."""
        if not isinstance(earlier, Histogram):
            raise ArgumentError(f"earlier is {shown(earlier)}, expected a Histogram")
        return Histogram(tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine. All but the first five are counted from its beginning."""

    running: int
    """Requests being computed together."""
    waiting: int
    """Requests that wait for a place or for memory, or whose reader is slow."""
    blocks: int
    """Blocks of the KV cache, 16 tokens each."""
    blocks_held: int
    """Of them, in use by running requests."""
    blocks_cached: int
    """Of the others, those whose keys and values can still be found."""
    requests: int
    """Accepted, whatever became of them."""
    finished: int
    """Ended by an end token, a stop string or their length."""
    cancelled: int
    """Ended by the caller."""
    expired: int
    """Ended by their deadline."""
    refused: int
    """Turned away because too many were waiting."""
    preempted: int
    """How often a request was sent back to wait, to resume later."""
    prompt_tokens: int
    """Of requests that have begun to talk."""
    cached_tokens: int
    """Of the prompt tokens, those found in the cache."""
    generated_tokens: int
    """End tokens included."""
    passes: int
    """Forward passes, each over all running requests."""
    busy_seconds: float
    """Time inside passes."""
    first_token: Histogram
    """Seconds from submitting to the first token."""
    inter_token: Histogram
    """Seconds between a text's tokens."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of computing."""
        return self.generated_tokens / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def prefix_hit_rate(self) -> float:
        """Which share of the prompt tokens was found in the cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def since(self, earlier: EngineStats) -> EngineStats:
        """What happened after `earlier`; the first five fields stay those of now.

        Raises ArgumentError unless `earlier` is what an engine's ``stats()`` gave.
        """
        if not isinstance(earlier, EngineStats):
            raise ArgumentError(f"earlier is {shown(earlier)}, expected an EngineStats")
        changes: dict[str, Any] = {}
        for field in fields(self)[5:]:
            now, before = getattr(self, field.name), getattr(earlier, field.name)
            changes[field.name] = now.since(before) if isinstance(now, Histogram) else now - before
        now_fields = {field.name: getattr(self, field.name) for field in fields(self)[:5]}
        return EngineStats(**now_fields, **changes)


def from_core(stats: dict[str, Any]) -> EngineStats:
    """From what the C++ engine says."""
    histograms = {name: Histogram(tuple(stats[name])) for name in ("first_token", "inter_token")}
    return EngineStats(**{**stats, **histograms})
