"""What each way to drive an engine costs: tokens per second of one text, and of many together.

The same texts by `Model.generate`, `Session.stream`, `Engine.step` and `AsyncEngine`, by turns in
one run, because machines that are shared change from minute to minute.

    python benchmarks/drive.py                     # the 93M shape, int8
    python benchmarks/drive.py --model default     # the model that comes with the package
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from machine import cpu_name, report
from make_model import REFERENCE, SMOKE, make_model

from pyllama2c import AsyncEngine, Engine, Model


def main() -> None:
    """Print one JSON line per number of texts and way to drive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a path, or default [default: one made by make_model.py]")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--kv-dtype", default="int8")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--tokens", type=int, default=100, help="in each text")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    if args.smoke:
        args.texts, args.tokens, args.rounds = [1, 4], 16, 1

    with ExitStack() as stack:
        path = None if args.model in (None, "default") else Path(args.model)
        if args.model is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = make_model(Path(folder) / "model.bin", SMOKE if args.smoke else REFERENCE)
        model = stack.enter_context(Model(path, dtype=args.dtype, kv_dtype=args.kv_dtype))
        for n in args.texts:
            measure(model, n, args.tokens, args.rounds)


def measure(model: Model, n: int, n_tokens: int, rounds: int) -> None:
    """Write `n` texts at once in each of the ways, and report the medians."""
    options = {"max_tokens": n_tokens, "ignore_eos": True, "seed": 1}
    prompts = [[1, 5 + i] for i in range(n)]
    engine, server = Engine(model), AsyncEngine(model)
    loop = asyncio.new_event_loop()  # one for all rounds, as a server has

    def generate() -> None:
        model.generate(prompts, **options)

    def stream() -> None:
        if n == 1:  # more would need as many threads
            session = engine.session(prefix=[1])
            for _ in session.stream(prompts[0][1:], **options):
                pass

    def step() -> None:
        requests = [engine.submit(prompt, **options) for prompt in prompts]
        while not all(request.done for request in requests):
            engine.step()

    async def listen(prompt: list[int]) -> None:
        async for _ in server.stream(prompt, **options):
            pass

    async def listen_all() -> None:
        await asyncio.gather(*map(listen, prompts))

    ways: dict[str, Callable[[], None]] = {
        "Model.generate": generate,
        "Session.stream": stream,
        "Engine.step": step,
        "AsyncEngine": lambda: loop.run_until_complete(listen_all()),
    }
    if n > 1:
        del ways["Session.stream"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    for name in ways:
        report(
            benchmark="drive",
            parameters=model.config.n_params,
            dtype=model.info()["dtype"],
            texts=n,
            tokens=n_tokens,
            way=name,
            tokens_per_s=n * n_tokens / statistics.median(seconds[name][1:]),  # the first warms up
            best_tokens_per_s=n * n_tokens / min(seconds[name][1:]),
            cpu=cpu_name(),
        )
    engine.close()
    loop.run_until_complete(server.close())
    loop.close()


if __name__ == "__main__":
    main()
