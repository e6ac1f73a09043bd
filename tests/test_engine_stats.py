"""What an engine tells of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import engine_helpers as helpers
import pytest

from pyllama2c import ArgumentError, Engine, EngineStats, Histogram, Model


def test_requests_are_counted(speaker: Path) -> None:
    with Model(speaker) as model, Engine(model, max_sequences=2) as engine:
        empty = engine.stats()
        assert isinstance(empty, EngineStats)
        assert (empty.requests, empty.tokens_per_second, empty.prefix_hit_rate) == (0, 0.0, 0.0)
        assert empty.first_token.percentile(50) == 0.0
        options = {"max_tokens": 5, "ignore_eos": True}
        requests = [engine.submit([5] * 40, **options) for _ in range(4)]
        engine.step()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.requests) == (2, 2, 4)
        assert stats.blocks_held > 0
        requests[3].cancel()
        helpers.run(engine)
        stats = engine.stats()
        assert (stats.finished, stats.cancelled, stats.generated_tokens) == (3, 1, 15)
        assert stats.prompt_tokens == 120
        assert stats.cached_tokens >= 32
        assert stats.blocks_cached > 0
        assert (stats.first_token.count, stats.inter_token.count) == (3, 12)
        assert 0 < stats.inter_token.percentile(50) <= stats.inter_token.percentile(99) < 60
        assert stats.tokens_per_second == pytest.approx(15 / stats.busy_seconds)
        engine.submit([5] * 40, **options)
        helpers.run(engine)
        recent = engine.stats().since(stats)
        assert (recent.requests, recent.generated_tokens, recent.first_token.count) == (1, 5, 1)
        assert recent.blocks == stats.blocks
        with pytest.raises(ArgumentError, match="earlier is 5, expected an EngineStats"):
            stats.since(5)  # type: ignore[arg-type]


def test_a_stop_string_finishes_a_request(speaker: Path) -> None:
    with Model(speaker) as model, Engine(model) as engine:
        stopped = engine.submit("Once", stop=["e"], seed=1, ignore_eos=True)
        engine.submit("Once").cancel()
        helpers.run(engine)
        assert stopped.finish_reason == "stop"
        assert (engine.stats().finished, engine.stats().cancelled) == (1, 1)


def test_percentiles() -> None:
    histogram = Histogram((0, 3, 0, 0, 0, 1))
    assert histogram.edges[0] == 10e-6
    assert histogram.edges[4] == pytest.approx(20e-6)
    assert histogram.percentile(0) == histogram.percentile(75) == histogram.edges[1]
    assert histogram.percentile(76) == histogram.edges[-1]  # in the bucket without end
    with pytest.raises(ArgumentError, match="101"):
        histogram.percentile(101)
    with pytest.raises(ArgumentError, match="percent is 'x'"):
        histogram.percentile("x")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="earlier is None, expected a Histogram"):
        histogram.since(None)  # type: ignore[arg-type]
    assert repr(histogram) == "<Histogram of 4: p50 1.2e-05 s, p99 2e-05 s>"


def test_the_engine_is_imported_when_it_is_used() -> None:
    code = """
import sys
import pyllama2c
loaded = {n for n in sys.modules if n.startswith("pyllama2c.")} | {"asyncio"} & set(sys.modules)
assert not {"pyllama2c.engine", "pyllama2c.session", "asyncio"} & loaded, loaded
for name in pyllama2c.__all__:
    getattr(pyllama2c, name)
assert not hasattr(pyllama2c, "no_such_name")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
