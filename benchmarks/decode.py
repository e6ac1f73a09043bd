"""How fast one text is written, beside how fast this machine reads memory.

Every token needs every weight once, and the keys and values of those before it, so tokens per
second times those bytes is memory read. It is compared with plain reading of as many bytes as the
weights take (bandwidth.py), in the same run and by turns, because machines that are shared change
from minute to minute.

    python benchmarks/decode.py                           # the 93M shape, random float32 weights
    python benchmarks/decode.py --model model.bin --dtype int8 int4
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from machine import Memory, cpu_name, report
from make_model import REFERENCE, SMOKE, make_model

from pyllama2c import Model


def main() -> None:
    """Print one JSON line per dtype and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[default: one made by make_model.py]")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=256, help="in each text")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    if args.smoke:
        args.tokens, args.rounds = 16, 1

    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "model.bin"
        if args.model is None:
            make_model(path, SMOKE if args.smoke else REFERENCE)
        for dtype in args.dtype:
            measure(path, dtype, args.threads, args.tokens, args.rounds)


def measure(path: Path, dtype: str, threads: list[int], n_tokens: int, rounds: int) -> None:
    """Let the model and the plain reader take turns, and report the medians."""
    with ExitStack() as stack:
        models = {
            n: stack.enter_context(Model(path, dtype=dtype, n_threads=n))  # type: ignore[arg-type]
            for n in threads
        }
        about, config = models[threads[0]].info(), models[threads[0]].config
        memory = stack.enter_context(Memory(about["weights_bytes"]))
        speeds: dict[int, list[float]] = {n: [] for n in threads}
        limits: dict[int, list[float]] = {n: [] for n in threads}
        n_tokens = min(n_tokens, config.max_seq_len - 1)
        for _ in range(rounds):
            for n in threads:
                completion = models[n].generate(
                    [1], temperature=0, max_tokens=n_tokens, ignore_eos=True
                )
                speeds[n].append(completion.timings.tokens_per_second)
                limits[n].append(memory.read(n))
    for n in threads:
        speed, limit = statistics.median(speeds[n]), statistics.median(limits[n]) / 1e9
        keys_and_values = about["kv_bytes_per_token"] * (n_tokens + 1) / 2  # of half the text
        rate = speed * (about["weights_bytes"] + keys_and_values) / 1e9
        report(
            benchmark="decode",
            parameters=config.n_params,
            dtype=about["dtype"],
            isa=about["isa"],
            threads=n,
            tokens=n_tokens,
            tokens_per_s=speed,
            best_tokens_per_s=max(speeds[n]),
            gb_per_s=rate,
            bandwidth_gb_per_s=limit,
            of_bandwidth=rate / limit,
            weights_mb=about["weights_bytes"] / 1e6,
            kv_mb=keys_and_values / 1e6,
            cpu=cpu_name(),
        )


if __name__ == "__main__":
    main()
