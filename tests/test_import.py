"""``import pyllama2c`` is light."""

from __future__ import annotations

import json
import subprocess
import sys


def _python(code: str, *flags: str) -> str:
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_nothing_heavy_is_imported() -> None:
    loaded = set(
        json.loads(_python("import json, sys, pyllama2c; print(json.dumps(list(sys.modules)))"))
    )
    heavy = {
        "torch", "transformers", "safetensors", "matplotlib", "pyarrow", "datasets", "click",
        "tqdm", "asyncio", "multiprocessing", "http.server", "fastapi", "starlette", "uvicorn",
        "aiohttp",
    }  # fmt: skip
    assert not loaded & heavy
    extras = {f"pyllama2c.{name}" for name in ("cli", "data", "train", "convert", "serve")}
    assert not loaded & extras


def test_it_takes_no_time() -> None:
    """At most 0.05 s of CPU on top of NumPy; the best of several, since machines are busy.

    Of this thread: those that NumPy's BLAS has started still spin for a while.
    """
    code = (
        "import time, numpy; start = time.thread_time(); import pyllama2c; "
        "print(time.thread_time() - start)"
    )
    assert min(float(_python(code)) for _ in range(5)) < 0.05
