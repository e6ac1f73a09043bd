"""The other end of `worker.py`: starting engines in their own processes and asking them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from engines.base import Request, Source
from engines.registry import CLASSES, OURS, engine_class

BENCHMARKS = Path(__file__).resolve().parent.parent


class EngineError(Exception):
    """An engine's process ended without an answer."""


@dataclass(frozen=True)
class Launcher:
    """How to start engines on one model."""

    source: Source
    pythons: Mapping[str, str]
    """Which interpreter runs an engine; those not named run in this one."""
    log: Path
    """Where what the engines print goes."""
    sequences: int
    context: int
    shared: tuple[int, ...] = ()
    """What all prompts begin with, if they do."""

    def command(self, engine: str, width: str, threads: int, *flags: str) -> list[str]:
        """The command line of a worker."""
        options = {
            "checkpoint": self.source.checkpoint,
            "hf": self.source.hf,
            "width": width,
            "threads": threads,
            "sequences": self.sequences,
            "context": self.context,
            "shared": list(self.shared),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        python = self.pythons.get(engine, sys.executable)
        return [python, "-m", "engines.worker", engine, *words, *flags]

    def start(self, engine: str, width: str, threads: int, *flags: str) -> subprocess.Popen[str]:
        """Start a worker with `threads` as the bound of every pool it might have."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *_python_path()]),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command(engine, width, threads, *flags),
                env=environment,
                cwd=BENCHMARKS,  # elsewhere, sources could be imported in place of the package
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def prepare(self, engine: str, width: str) -> None:
        """Convert the model for an engine. Raises EngineError where that fails."""
        self._once(engine, width, 1, "--prepare")

    def first_token_seconds(self, engine: str, width: str, threads: int) -> float:
        """Of a whole process: from its start to its first token."""
        start = time.perf_counter()
        self._once(engine, width, threads, "--first-token")
        return time.perf_counter() - start

    def _once(self, engine: str, width: str, threads: int, flag: str) -> None:
        process = self.start(engine, width, threads, flag)
        _read(process)
        process.kill()
        process.wait()


class Worker:
    """An engine, loaded; stopped (SIGSTOP) while it is not asked, so that none disturbs another."""

    def __init__(self, launcher: Launcher, engine: str, width: str, threads: int) -> None:
        """Start it and wait until it has loaded. Raises EngineError where it does not."""
        self.engine = engine
        self._process = launcher.start(engine, width, threads)
        hello = _read(self._process)
        self.version: str = hello["version"]
        self.setting: str = hello["setting"]
        self._process.send_signal(signal.SIGSTOP)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds and new ids. Raises EngineError where the engine fails."""
        answer = self._ask({"prompts": prompts, "new_tokens": new_tokens})
        return answer["seconds"], answer["ids"]

    def serve(self, requests: list[Request]) -> tuple[list[list[float]], int]:
        """What `Server.serve` gives, and the most memory the process has had resident, in bytes.

        Raises EngineError where the engine fails.
        """
        answer = self._ask({"requests": [astuple(request) for request in requests]})
        return answer["times"], answer["peak_bytes"]

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise EngineError("the process ended") from None
        answer = _read(self._process)
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()


def prepared(launcher: Launcher, engines: Iterable[str], width: str) -> list[str]:
    """Convert the model for the engines; returns those that could."""
    ready = []
    for engine in engines:
        if width in engine_class(engine).widths:
            with left_out_if_it_fails(engine):
                launcher.prepare(engine, width)
                ready.append(engine)
    return ready


@contextmanager
def running(
    launcher: Launcher, engines: Iterable[str], width: str, threads: int
) -> Iterator[list[Worker]]:
    """Those of the engines that start, for as long as the context lasts."""
    workers: list[Worker] = []
    try:
        for engine in engines:
            with left_out_if_it_fails(engine):
                workers.append(Worker(launcher, engine, width, threads))
        yield workers
    finally:
        for worker in workers:
            worker.close()


@contextmanager
def left_out_if_it_fails(
    engine: str, leave_out: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Go on without an engine that fails; without pyllama2c there is nothing to compare."""
    try:
        yield
    except EngineError as error:
        if engine == OURS:
            raise
        print(f"{engine} is left out: {error}; see engines.log", file=sys.stderr)
        leave_out()


def add_options(parser: argparse.ArgumentParser, engines: Sequence[str]) -> None:
    """The options that choose the engines and say where they are."""
    parser.add_argument("--engines", nargs="+", choices=engines, default=[OURS])
    parser.add_argument(
        "--python",
        nargs="+",
        type=_engine_python,
        default=[],
        metavar="ENGINE=PYTHON",
        help="interpreters of the virtual environments that engines are installed in "
        "[default: this one]",
    )
    parser.add_argument("--models", type=Path, help="folder to keep the converted models in")


def _engine_python(text: str) -> tuple[str, str]:
    engine, _, python = text.partition("=")
    if engine not in CLASSES or not python:
        expected = f"ENGINE=PYTHON, with an engine of {', '.join(CLASSES)}"
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
    path = Path(python).expanduser()
    return engine, str(path.absolute() if len(path.parts) > 1 else path)  # a name: by PATH


def _read(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise EngineError(f"the process ended with {process.wait()}")
    return json.loads(line)


def _python_path() -> list[str]:
    found = os.environ.get("PYTHONPATH")
    return [found] if found else []
