"""The process an engine runs in: commands on stdin and answers on stdout, one JSON object a line.

Its first line says what it loaded. To ``{"prompts": [[id, ...], ...], "new_tokens": n}`` it
answers ``{"seconds": s, "ids": [[id, ...], ...]}``, to ``{"requests": [[arrival, [id, ...], n],
...]}`` ``{"times": [[s, ...], ...], "peak_bytes": n}`` (see `Server.serve`). With
``--first-token`` it loads, gives one token and leaves, as a program that is called for one answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import IO, Any

from engines.base import Engine, Request, Server, Setup, Source
from engines.registry import CLASSES, engine_class

PROMPT = [1, 5, 9, 17, 33, 65, 129, 257]


def main() -> None:
    """Run one engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=CLASSES)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--width", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--context", type=int, default=384)
    parser.add_argument("--shared", type=json.loads, default=[], help="ids, as JSON")
    parser.add_argument("--prepare", action="store_true", help="convert the model and leave")
    parser.add_argument("--first-token", action="store_true")
    options = parser.parse_args()

    answers = _take_stdout()
    kind = engine_class(options.engine)
    path = kind.prepare(Source(options.checkpoint, options.hf), options.width)
    if options.prepare:
        _say(answers, {"version": kind.version(), "path": str(path)})
        return
    setup = Setup(
        options.width, options.threads, options.sequences, options.context, tuple(options.shared)
    )
    engine = kind(path, setup)
    if options.first_token:
        _say(answers, {"ids": engine.generate([PROMPT], 1)})
        return
    _say(answers, {"version": kind.version(), "setting": engine.setting})
    for line in sys.stdin:
        _say(answers, _obey(engine, json.loads(line)))


def _obey(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    if "requests" in command:
        assert isinstance(engine, Server)
        times = engine.serve([Request(*request) for request in command["requests"]])
        return {"times": times, "peak_bytes": _peak_bytes()}
    start = time.perf_counter()
    ids = engine.generate(command["prompts"], command["new_tokens"])
    return {"seconds": time.perf_counter() - start, "ids": ids}


def _peak_bytes() -> int:
    """Most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _take_stdout() -> IO[str]:
    """Keep stdout for the answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
