"""Memory: loading takes the file and the packed weights, and afterwards only those are left."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyllama2c import ModelConfig
from pyllama2c.convert import convert

CONFIG = ModelConfig(512, 1400, 6, 8, 8, 4000, 64)  # 21 M parameters, 85 MB

MEASURE = """
import json, sys
from pathlib import Path
import pyllama2c.checkpoint.packed
from pyllama2c import Model

def memory():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kib = {line[0][:-1]: int(line[1]) for line in lines if line[-1] == "kB"}
    return {name: kib[name] * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}

path, options = json.loads(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory()
with Model(path, n_threads=2, **options) as model:
    after = memory()
    weights = model.info()["weights_bytes"]
result = {
    "weights": weights,
    "peak": after["VmHWM"] - before["VmRSS"],
    "left": after["VmRSS"] - before["VmRSS"],
    "own": after["RssAnon"] - before["RssAnon"],
}
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v1 file of zeros."""
    path = tmp_path_factory.mktemp("memory") / "model.bin"
    c = CONFIG
    sizes = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.max_seq_len)
    with path.open("wb") as file:
        file.write(struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, 1))
        file.truncate(256 + 4 * c.n_params)
    return path


def measure(path: Path, **options: object) -> dict[str, int]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot tell the peak of a process's memory")
    arguments = json.dumps([str(path), options])
    command = [sys.executable, "-c", MEASURE, arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    measured: dict[str, int] = json.loads(output)
    return measured


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("kind", ["llama2.c", "Hugging Face"])
def test_loading_takes_no_more_than_file_and_weights(
    zeros: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    path = zeros
    if kind == "Hugging Face":
        path = tmp_path / "hf"
        convert(zeros, path)
    found = measure(path, dtype=dtype)
    assert found["weights"] > CONFIG.n_params // 2
    assert found["peak"] <= 4 * CONFIG.n_params + found["weights"] + (64 << 20)
    assert found["left"] <= found["weights"] + (8 << 20)


def test_a_mapped_file_takes_nothing_and_a_copied_one_its_weights(
    zeros: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    convert(zeros, packed, dtype="int8")
    mapped, copied = measure(packed), measure(packed, mmap=False)
    assert mapped["weights"] == copied["weights"] > CONFIG.n_params
    assert mapped["own"] <= 8 << 20
    assert mapped["peak"] <= 16 << 20
    assert copied["peak"] <= 2 * copied["weights"] + (16 << 20)
    assert copied["left"] <= copied["weights"] + (8 << 20)
