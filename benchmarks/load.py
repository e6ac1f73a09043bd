"""How long it takes until a model is there, and what memory that takes.

For each way to store the reference model: the time of `Model(path)` with the file in the page
cache, memory at its peak and afterwards, and the time of a whole new Python process up to its first
token. Every value is of a process of its own; all of them take turns.

    python benchmarks/load.py                    # the 93M shape, random weights
    python benchmarks/load.py --model model.bin
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from machine import cpu_name, report
from make_model import REFERENCE, SMOKE, make_model

from pyllama2c import Model
from pyllama2c.convert import convert


class Case(NamedTuple):
    """A file and how to open it."""

    path: Path
    options: dict[str, Any]


def main() -> None:
    """Print one JSON line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[default: one made by make_model.py]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="of which the median is taken")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in the new processes
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], json.loads(args.measure[1]))
        return
    if args.smoke:
        args.rounds = 1
    with tempfile.TemporaryDirectory() as folder:
        source = args.model or make_model(
            Path(folder) / "model.bin", SMOKE if args.smoke else REFERENCE
        )
        cases = list(prepare(source, Path(folder), args.threads))
        results: list[list[dict[str, float]]] = [[] for _ in cases]
        for _ in range(args.rounds):
            for case, measured in zip(cases, results, strict=True):
                path, options = str(case.path), json.dumps(case.options)
                command = [sys.executable, __file__, "--measure", path, options]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                measured.append({**json.loads(output), "process_s": time_process(case)})
        for case, measured in zip(cases, results, strict=True):
            with Model(case.path, **case.options) as model:
                about = model.info()
            medians = {name: statistics.median(r[name] for r in measured) for name in measured[0]}
            report(
                benchmark="load",
                format=about["format"],
                dtype=about["dtype"],
                mapped=about["mapped"],
                threads=args.threads,
                **medians,
                file_mb=sum(f.stat().st_size for f in files(case.path)) / 1e6,
                weights_mb=about["weights_bytes"] / 1e6,
                rounds=args.rounds,
                cpu=cpu_name(),
            )


def prepare(source: Path, folder: Path, n_threads: int) -> Iterator[Case]:
    """Write the model in each format, and read the files once."""
    convert(source, folder / "hf")
    convert(source, folder / "v2.bin", to="v2")
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        yield Case(source, {"dtype": dtype, "n_threads": n_threads})
    yield Case(folder / "hf", {"dtype": "int8", "n_threads": n_threads})
    yield Case(folder / "v2.bin", {"n_threads": n_threads})
    for dtype in ("int8", "int4"):
        packed = folder / f"{dtype}.safetensors"
        convert(source, packed, dtype=dtype)
        for mmap in (True, False):
            yield Case(packed, {"mmap": mmap, "n_threads": n_threads})
    for path in files(folder):
        path.read_bytes()


def files(path: Path) -> list[Path]:
    """The file, or those in the directory."""
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def measure(path: str, options: dict[str, Any]) -> None:
    """In a new process: load the model, take a first token, and print what they cost."""
    import pyllama2c.checkpoint.packed  # noqa: F401 - imports are not what is measured here

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_mb()
    start = time.perf_counter()
    with Model(path, **options) as model:
        loaded = time.perf_counter()
        model.generate([1], temperature=0, max_tokens=1)
        first_token = time.perf_counter()
        after = resident_mb()
    result = {
        "load_s": loaded - start,
        "first_token_s": first_token - start,
        "peak_mb": after["VmHWM"] - before["VmRSS"],
        "resident_mb": after["VmRSS"] - before["VmRSS"],
        "of_its_own_mb": after["RssAnon"] - before["RssAnon"],
    }
    print(json.dumps(result))


def resident_mb() -> dict[str, float]:
    """Of this process: memory now, its peak, and what no other process could share."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kib = {line[0].rstrip(":"): int(line[1]) for line in lines if line[-1] == "kB"}
    return {name: kib[name] * 1024 / 1e6 for name in ("VmRSS", "VmHWM", "RssAnon")}


def time_process(case: Case) -> float:
    """Seconds from starting Python to the first token on its stdout."""
    path = case.path.resolve()
    script = (
        "from pyllama2c import Model\n"
        f"for chunk in Model({str(path)!r}, **{case.options!r}).stream([1], max_tokens=1):\n"
        "    print(chunk.token_ids, flush=True)\n"
    )
    start = time.perf_counter()
    # Elsewhere: a copy of the sources in this folder would be imported in place of the package.
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=path.parent) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"no token from {case}")
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
