"""``import pyllama2c`` is light."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


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


def test_its_source_folder_is_no_obstacle(tmp_path: Path) -> None:
    """Python started there finds it before the installed package, without the compiled module."""
    import pyllama2c

    source = Path(pyllama2c.__path__[0])
    ignored = shutil.ignore_patterns("_core.*.so", "__pycache__", "assets")
    shutil.copytree(source, tmp_path / "pyllama2c", ignore=ignored)
    code = "import pyllama2c; print(pyllama2c.__file__, pyllama2c._core.isa())"
    installed = os.environ | {"PYTHONPATH": str(Path(pyllama2c._core.__file__).parents[1])}

    def run(env: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *flags, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    assert run(installed).stdout.startswith(str(tmp_path))
    assert "ImportError: pyllama2c is not installed" in run({}, "-S").stderr


def test_it_takes_no_time() -> None:
    """At most 0.05 s of CPU on top of NumPy; the best of several, since machines are busy.

    Of this thread: those that NumPy's BLAS has started still spin for a while.
    """
    code = (
        "import time, numpy; start = time.thread_time(); import pyllama2c; "
        "print(time.thread_time() - start)"
    )
    assert min(float(_python(code)) for _ in range(5)) < 0.05
