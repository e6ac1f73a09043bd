"""A village that talks: many characters share a world, each says a line when somebody comes by.

Prompts are a world that all share and a persona each; arrivals are a Poisson process. Every engine
serves the same requests from its own process, one engine after the other in each round, and all
others are stopped meanwhile.

    python benchmarks/npc.py --engines pyllama2c openvino --python openvino=~/openvino/bin/python

A rate that no engine can keep up with measures throughput, with the batch full; a lower one
latency. README.md in this folder tells how to install the engines.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from engines.base import WIDTHS, Request
from engines.client import (
    Launcher,
    Worker,
    add_options,
    left_out_if_it_fails,
    prepared,
    running,
)
from engines.models import models_folder, prepare_source
from engines.registry import SERVERS
from machine import cpu_name, report
from make_model import REFERENCE, SMOKE


@dataclass(frozen=True)
class Village:
    """The work; all lengths in tokens."""

    characters: int = 300
    concurrent: int = 64
    world: int = 200
    persona: int = 40
    line: int = 60

    def requests(self, world: list[int], rate: float, vocab_size: int, seed: int) -> list[Request]:
        """One line of every character, with personas that no round before had."""
        rng = random.Random(seed)
        arrival, requests = 0.0, []
        for _ in range(self.characters):
            persona = random_ids(rng, self.persona, vocab_size)
            requests.append(Request(arrival, world + persona, self.line))
            arrival += rng.expovariate(rate)
        return requests


@dataclass
class Log:
    """What an engine did at one rate, over the rounds."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    """After the arrival, of every request."""
    inter_token_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def add(self, requests: list[Request], times: list[list[float]], peak_bytes: int) -> None:
        """A round's requests, and when each one's tokens were there."""
        last = max(max(one) for one in times)
        self.tokens_per_s.append(sum(map(len, times)) / last)
        for request, one in zip(requests, times, strict=True):
            self.first_token_s.append(one[0] - request.arrival)
            self.inter_token_s.extend(np.diff(one))
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


def main() -> None:
    """Serve the village with every engine."""
    options = parse_options()
    with models_folder(options.models, options.smoke) as folder:
        serve_all(options, folder)


def serve_all(options: argparse.Namespace, folder: Path) -> None:
    """At each rate of arrivals."""
    config = SMOKE if options.smoke else REFERENCE
    village = Village(12, 4, 20, 4, 6) if options.smoke else Village()
    world = [1, *random_ids(random.Random(0), village.world - 1, config.vocab_size)]
    launcher = Launcher(
        source=prepare_source(folder, config),
        pythons=dict(options.python),
        log=folder / "engines.log",
        sequences=village.concurrent,
        context=village.world + village.persona + village.line,
        shared=tuple(world),
    )
    engines = prepared(launcher, options.engines, options.width)
    with running(launcher, engines, options.width, options.threads) as workers:
        for rate in options.rates:
            logs = {worker.engine: Log() for worker in workers}
            for round_ in range(options.rounds):
                requests = village.requests(world, rate, config.vocab_size, hash((rate, round_)))
                for worker in list(workers):
                    with left_out_if_it_fails(worker.engine, partial(workers.remove, worker)):
                        logs[worker.engine].add(requests, *worker.serve(requests))
            for worker in workers:
                report_log(village, options, rate, worker, logs[worker.engine])


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, SERVERS)
    parser.add_argument("--width", choices=WIDTHS, default="int8", help="of the weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[1000, 8], help="arrivals per second"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="seconds, on a tiny model")
    options = parser.parse_args()
    if options.smoke:
        options.rounds = 1
    return options


def random_ids(rng: random.Random, n: int, vocab_size: int) -> list[int]:
    """Ids that are not special."""
    return [rng.randrange(3, vocab_size) for _ in range(n)]


def report_log(
    village: Village, options: argparse.Namespace, rate: float, worker: Worker, log: Log
) -> None:
    """One result."""

    def ms(seconds: list[float], percentile: float) -> float:
        return float(np.percentile(seconds, percentile)) * 1000

    report(
        benchmark="npc", engine=worker.engine, version=worker.version, setting=worker.setting,
        width=options.width, threads=options.threads, arrivals_per_s=rate,
        characters=village.characters, concurrent=village.concurrent, rounds=options.rounds,
        tokens_per_s=float(np.median(log.tokens_per_s)),
        first_token_p50_ms=ms(log.first_token_s, 50), first_token_p99_ms=ms(log.first_token_s, 99),
        inter_token_p50_ms=ms(log.inter_token_s, 50), inter_token_p99_ms=ms(log.inter_token_s, 99),
        peak_mib=log.peak_bytes / 2**20, cpu=cpu_name(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
