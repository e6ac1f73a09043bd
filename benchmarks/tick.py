"""Whether a game loop can call the engine in every tick: how far `step` overruns its budget.

Characters share a world prompt and have personas; whoever has finished a line hears the next one
at once, so that the engine always has all the work it can do. The overrun is compared with the
time of one layer of the model over the batch, which a step may take longer than its budget.

    python benchmarks/tick.py                     # the 93M shape, int8, 64 characters at once
    python benchmarks/tick.py --model default     # the model that comes with the package
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from machine import cpu_name, report
from make_model import REFERENCE, SMOKE, make_model

from pyllama2c import Engine, Model, Session


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a path, or default [default: one made by make_model.py]")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--kv-dtype", default="int8")
    parser.add_argument("--characters", type=int, default=64)
    parser.add_argument("--calls", type=int, default=10_000, help="of step")
    parser.add_argument("--budget-ms", type=float, default=2.0)
    parser.add_argument("--threads", type=int, help="[default: all CPUs]")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    if args.smoke:
        args.calls, args.characters = 100, 8

    with ExitStack() as stack:
        path = None if args.model in (None, "default") else Path(args.model)
        if args.model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = make_model(Path(folder) / "model.bin", SMOKE if args.smoke else REFERENCE)
        model = stack.enter_context(
            Model(path, dtype=args.dtype, kv_dtype=args.kv_dtype, n_threads=args.threads)
        )
        engine = stack.enter_context(
            Engine(model, max_sequences=args.characters, kv_memory="512MiB", preallocate=True)
        )
        measure(engine, args)


def measure(engine: Engine, args: argparse.Namespace) -> None:
    """Call `step` so many times and report."""
    rng = random.Random(1)
    config = engine.model.config

    def words(n: int) -> list[int]:
        return [rng.randrange(3, config.vocab_size) for _ in range(n)]

    room = config.max_seq_len
    world = engine.prefix([1, *words(min(200, room // 3))])
    characters = [
        engine.session(prefix=world.extend(words(min(40, room // 6))), seed=i, overflow="slide")
        for i in range(args.characters)
    ]

    def hear(character: Session) -> None:
        n = rng.randint(room // 25, room // 12)  # about 60 tokens where the context holds 768
        character.submit(words(8), max_tokens=n, ignore_eos=True)

    for character in characters:
        hear(character)
    while engine.stats().waiting or engine.stats().generated_tokens < 4 * args.characters:
        engine.step()  # everybody has read his persona

    budget, took, layers, n_tokens = args.budget_ms / 1000, [], [], 0
    before = last = engine.stats()
    for _ in range(args.calls):
        start = time.perf_counter()
        events = engine.step(args.budget_ms)
        took.append(time.perf_counter() - start)
        n_tokens += sum(len(event.chunk.token_ids) for event in events)
        for character in characters:
            if not character.busy:
                hear(character)
        now = engine.stats()
        recent, last = now.since(last), now
        if recent.passes:
            layers.append(recent.busy_seconds / recent.passes / (config.n_layers + 1))
    stats = engine.stats().since(before)
    overruns = sorted(1000 * max(seconds - budget, 0.0) for seconds in took)
    layers.sort()
    report(
        benchmark="tick",
        parameters=config.n_params,
        dtype=engine.model.info()["dtype"],
        characters=args.characters,
        threads=engine.model.info()["n_threads"],
        calls=args.calls,
        budget_ms=args.budget_ms,
        overrun_p50_ms=overruns[len(overruns) // 2],
        overrun_p99_ms=overruns[len(overruns) * 99 // 100],
        overrun_max_ms=overruns[-1],
        layer_p50_ms=1000 * layers[len(layers) // 2],
        layer_p99_ms=1000 * layers[len(layers) * 99 // 100],
        tokens_per_pass=n_tokens / stats.passes,
        tokens_per_s=n_tokens / sum(took),
        cpu=cpu_name(),
    )


if __name__ == "__main__":
    main()
