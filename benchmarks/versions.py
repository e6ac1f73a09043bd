"""Whether one version of pyllama2c is faster than another: both do the same work by turns.

Each version is installed in a virtual environment of its own and named by its interpreter. Pairs
of processes are started several times, because where a process finds its memory makes a difference
of some percent, too. Every figure is a ratio of neighbours in time; an installation beside itself,
the default, shows how much of it is noise. The first version packs the model for all.

    python benchmarks/versions.py ~/before/bin/python ~/after/bin/python --widths int8 --threads 2
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from engines.base import WIDTHS
from engines.client import Launcher, Worker
from engines.models import models_folder, prepare_source
from engines.registry import OURS
from machine import cpu_name, report
from make_model import REFERENCE, SMOKE
from peers import MEASURES, SMOKE_MEASURES, Measure, check_length


def main() -> None:
    """Print one JSON line for each width, number of threads, measure and version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pythons",
        nargs="*",
        default=[sys.executable] * 2,
        help="the first one is what others are measured by",
    )
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["int8"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), help="[default: all]")
    parser.add_argument("--starts", type=int, default=5, help="of each version's process")
    parser.add_argument("--rounds", type=int, default=5, help="of each pair of processes")
    parser.add_argument("--models", type=Path, help="folder to keep the models in")
    parser.add_argument("--smoke", action="store_true", help="seconds, on a tiny model")
    options = parser.parse_args()
    measures = MEASURES
    if options.smoke:
        options.starts = options.rounds = 1
        options.threads, measures = [1], SMOKE_MEASURES
    wanted = options.measures or measures
    chosen = {name: measure for name, measure in measures.items() if name in wanted}

    config = SMOKE if options.smoke else REFERENCE
    with models_folder(options.models, options.smoke) as folder:
        source = prepare_source(folder, config)
        launchers = [
            Launcher(
                source=source,
                pythons={OURS: str(Path(shutil.which(python) or python).absolute())},
                log=folder / "engines.log",
                sequences=max(measure.sequences for measure in chosen.values()),
                context=max(measure.context for measure in chosen.values()),
            )
            for python in options.pythons
        ]
        for width in options.widths:
            launchers[0].prepare(OURS, width)
            for threads in options.threads:
                rates: dict[str, list[dict[int, float]]] = {name: [] for name in chosen}
                for _ in range(options.starts):
                    with ExitStack() as stack:
                        workers = [
                            stack.enter_context(closing(Worker(launcher, OURS, width, threads)))
                            for launcher in launchers
                        ]
                        for name, measure in chosen.items():
                            turns = take_turns(workers, measure, options.rounds, config.vocab_size)
                            rates[name] += turns
                for name in chosen:
                    report_ratios(name, width, threads, options.pythons, rates[name])


def take_turns(
    workers: list[Worker], measure: Measure, rounds: int, vocab_size: int
) -> list[dict[int, float]]:
    """Let every version do the work, in one order and the other.

    Returns the tokens per second of each version, for each round.
    """
    results = []
    order = list(enumerate(workers))
    for round_ in range(1 + rounds):  # the first one is for warming up
        prompts = measure.prompts(vocab_size, seed=round_)
        rates = {}
        for version, worker in order:
            seconds, ids = worker.generate(prompts, measure.new_tokens)
            check_length(OURS, ids, measure)
            rates[version] = measure.tokens / seconds
        order.reverse()
        results.append(rates)
    return results[1:]


def report_ratios(
    name: str, width: str, threads: int, pythons: list[str], rounds: list[dict[int, float]]
) -> None:
    """One line for each version: its rate, and how many times the first one's of the same round."""
    for version, python in enumerate(pythons):
        ratios = sorted(rates[version] / rates[0] for rates in rounds)
        report(
            benchmark="versions", python=python, width=width, threads=threads, measure=name,
            tokens_per_s=statistics.median(rates[version] for rates in rounds),
            times_the_first=statistics.median(ratios), lowest=ratios[0], highest=ratios[-1],
            rounds=len(rounds), cpu=cpu_name(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
