"""What the benchmarks share: the machine's own limits, and one JSON line per result."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

PEAKS = ("float32", "bfloat16", "int8")


def report(**fields: object) -> None:
    """Print a result as one JSON line; floats get four digits."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in fields.items()}
    print(json.dumps(rounded, ensure_ascii=False), flush=True)


def cpu_name() -> str:
    """What the CPU calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@functools.cache
def _library() -> ctypes.CDLL:
    """machine.cpp, compiled for this CPU by the system's compiler ($CXX, or c++)."""
    compiler = os.environ.get("CXX", "c++")
    source = Path(__file__).with_name("machine.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "machine.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.memory_open.restype = ctypes.c_void_p
    loaded.memory_open.argtypes = [ctypes.c_size_t, ctypes.c_int]
    loaded.memory_close.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.memory_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_double]
    loaded.memory_read.restype = ctypes.c_double
    for name in PEAKS:
        peak = getattr(loaded, f"peak_{name}")
        peak.restype, peak.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
    return loaded


class Memory:
    """Memory to read from and measure how fast that goes."""

    def __init__(self, n_bytes: int, huge_pages: bool = True) -> None:
        self._n_bytes = n_bytes
        self._data = _library().memory_open(n_bytes, huge_pages)
        if self._data is None:
            raise MemoryError(f"no {n_bytes} bytes to read from")

    def read(self, n_threads: int, seconds: float = 0.5) -> float:
        """Bytes per second that ``n_threads`` read together, each its own share of the memory."""
        rate: float = _library().memory_read(self._data, self._n_bytes, n_threads, seconds)
        return rate

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _library().memory_close(self._data, self._n_bytes)


def peak(dtype: str, n_threads: int, seconds: float = 0.5) -> float | None:
    """Most multiplications and additions per second, of one of `PEAKS`, both counted.

    None where the CPU has no instruction for it.
    """
    rate: float = getattr(_library(), f"peak_{dtype}")(n_threads, seconds)
    return rate or None
