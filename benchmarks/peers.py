r"""How fast pyllama2c is beside other engines: the same model, the same work, in the same run.

Every engine runs in a process of its own. Round by round each gets its turn at each measure, and
all others are stopped meanwhile; medians of the rounds are reported, one JSON line each.

    python benchmarks/peers.py --engines pyllama2c llama_cpp openvino \
        --python llama_cpp=~/llama/bin/python openvino=~/openvino/bin/python

README.md in this folder tells how to install the engines and what the fields mean.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines.base import WIDTHS
from engines.client import (
    Launcher,
    Worker,
    add_options,
    left_out_if_it_fails,
    prepared,
    running,
)
from engines.models import models_folder, prepare_source
from engines.registry import CLASSES, OURS
from machine import cpu_name, report
from make_model import REFERENCE, SMOKE


@dataclass(frozen=True)
class Measure:
    """One kind of work."""

    sequences: int
    prompt_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """What its rate counts: new tokens, or the prompt's where there is only one new one."""
        per_sequence = self.prompt_tokens if self.new_tokens == 1 else self.new_tokens
        return self.sequences * per_sequence

    @property
    def context(self) -> int:
        """Tokens of a whole sequence."""
        return self.prompt_tokens + self.new_tokens

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Random ids, others for every seed, so that no engine can know a prompt already."""
        rng = random.Random(seed)
        return [
            [1, *(rng.randrange(3, vocab_size) for _ in range(self.prompt_tokens - 1))]
            for _ in range(self.sequences)
        ]


MEASURES = {
    "decode_1": Measure(1, 2, 128),
    "decode_8": Measure(8, 2, 64),
    "decode_64": Measure(64, 2, 32),
    "prefill_256": Measure(1, 256, 1),
}
SMOKE_MEASURES = {
    "decode_1": Measure(1, 2, 8),
    "decode_8": Measure(8, 2, 4),
    "prefill_32": Measure(1, 32, 1),
}
FIRST_TOKEN = "first_token"
"""A whole process that loads the model and gives one token; its unit is seconds."""


def main() -> None:
    """Measure what the options say."""
    options = parse_options()
    with models_folder(options.models, options.smoke) as folder:
        measure_all(options, folder)


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    """Each width with each number of threads."""
    config = SMOKE if options.smoke else REFERENCE
    measures = SMOKE_MEASURES if options.smoke else MEASURES
    chosen = options.measures or [*measures, FIRST_TOKEN]
    launcher = Launcher(
        source=prepare_source(folder, config),
        pythons=dict(options.python),
        log=folder / "engines.log",
        sequences=max(measure.sequences for measure in measures.values()),
        context=max(measure.context for measure in measures.values()),
    )
    for width in options.widths:
        engines = prepared(launcher, options.engines, width)
        if options.prepare:
            continue
        for threads in options.threads:
            run = Run(width, threads, options.rounds, config.vocab_size)
            with running(launcher, engines, width, threads) as workers:
                for name in (name for name in measures if name in chosen):
                    run.measure(name, measures[name], workers)
            if FIRST_TOKEN in chosen:
                run.first_token(launcher, engines)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, list(CLASSES))
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--measures", nargs="+", choices=[*MEASURES, FIRST_TOKEN], help="[default: all]"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepare", action="store_true", help="convert the models and stop")
    parser.add_argument("--smoke", action="store_true", help="seconds, on a tiny model")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.threads = 1, [1]
    return options


@dataclass
class Run:
    """All engines at one width and number of threads."""

    width: str
    threads: int
    rounds: int
    vocab_size: int

    def measure(self, name: str, measure: Measure, workers: list[Worker]) -> None:
        """Let the engines take turns; report each one's median."""
        rates: dict[str, list[float]] = {worker.engine: [] for worker in workers}
        agreement: dict[str, int | None] = {}
        for round_ in range(1 + self.rounds):  # the first one is for warming up
            prompts = measure.prompts(self.vocab_size, seed=round_)
            texts: dict[str, list[int]] = {}
            for worker in list(workers):
                with left_out_if_it_fails(worker.engine, partial(workers.remove, worker)):
                    seconds, ids = worker.generate(prompts, measure.new_tokens)
                    check_length(worker.engine, ids, measure)
                    rates[worker.engine].append(measure.tokens / seconds)
                    texts[worker.engine] = ids[-1]
            if OURS in texts:
                agreement = {engine: n_equal(ids, texts[OURS]) for engine, ids in texts.items()}
        for worker in workers:
            self.report(
                name, "tokens/s", worker.engine, rates, version=worker.version,
                setting=worker.setting, tokens_like_ours=agreement.get(worker.engine),
            )  # fmt: skip

    def first_token(self, launcher: Launcher, engines: list[str]) -> None:
        """Start every engine anew, by turns; its files are in the page cache by then."""
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(1 + self.rounds):
            for engine in list(seconds):
                with left_out_if_it_fails(engine, partial(seconds.pop, engine)):
                    spent = launcher.first_token_seconds(engine, self.width, self.threads)
                    seconds[engine].append(spent)
        for engine in seconds:
            self.report(FIRST_TOKEN, "s", engine, seconds)

    def report(
        self, measure: str, unit: str, engine: str, values: dict[str, list[float]], **more: object
    ) -> None:
        """One result; `ours_is_better_by` is above 1 where pyllama2c is faster."""
        medians = {one: statistics.median(rounds[1:]) for one, rounds in values.items() if rounds}
        better = None
        if OURS in medians:
            ratio = medians[OURS] / medians[engine]
            better = ratio if unit == "tokens/s" else 1 / ratio
        report(
            benchmark="peers", engine=engine, width=self.width, threads=self.threads,
            measure=measure, unit=unit, median=medians[engine], lowest=min(values[engine][1:]),
            highest=max(values[engine][1:]), rounds=self.rounds, ours_is_better_by=better,
            cpu=cpu_name(), **more,
        )  # fmt: skip


def check_length(engine: str, ids: list[list[int]], measure: Measure) -> None:
    """Refuse a result that is not the work that was asked for."""
    lengths = [len(one) for one in ids]
    if lengths != [measure.new_tokens] * measure.sequences:
        raise SystemExit(f"{engine} gave {lengths} tokens, expected {measure}")


def n_equal(a: list[int], b: list[int]) -> int:
    """How many ids are equal before the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


if __name__ == "__main__":
    main()
