"""The safetensors reader: agrees with the library of that name, survives any file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllama2c.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from pyllama2c.errors import CheckpointError

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(3, 5)).astype(np.float32),
    "b": RNG.normal(size=7).astype(np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2, np.float32),
}


def write(path: Path, tensors: dict[str, Any], dtype: str = "float32") -> bytes:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with path.open("wb") as file:
        write_safetensors(file, shapes, dtype, tensors.__getitem__, {"format": "pt"})
    return path.read_bytes()


def assemble(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS)
    file = SafetensorsFile(tmp_path / "file")
    assert file.metadata == {"format": "pt"}
    assert file.shapes == {name: tensor.shape for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(file.read(name), tensor)
        assert not file.read(name).flags.writeable


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    numpy_api = pytest.importorskip("safetensors.numpy")
    write(tmp_path / "file", TENSORS)
    loaded = numpy_api.load_file(tmp_path / "file")
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    numpy_api = pytest.importorskip("safetensors.numpy")
    tensors = dict(TENSORS, half=np.arange(5, dtype=np.float16))
    numpy_api.save_file(tensors, tmp_path / "file", {"any": "thing"})
    file = SafetensorsFile(tmp_path / "file")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name), tensor)
    assert file.tensors["half"].dtype == "float16"


def test_bfloat16_is_read_as_its_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_api = pytest.importorskip("safetensors.torch")
    torch_api.save_file({"x": torch.tensor([1.0, -2.5], dtype=torch.bfloat16)}, tmp_path / "file")
    file = SafetensorsFile(tmp_path / "file")
    assert file.tensors["x"].dtype == "bfloat16"
    assert file.read("x").tolist() == [0x3F80, 0xC020]


def test_data_at_an_odd_address(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)  # odd
    path = assemble(tmp_path / "file", text, np.array([1, 2], "<f4").tobytes())
    array = SafetensorsFile(path).read("x")
    assert array.tolist() == [1, 2]
    assert array.flags.aligned


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "JSON"),
        (b"[]", "no JSON object"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"x":' * 50_000, "JSON"),
        (b'{"x": 1' + b"0" * 5000 + b"}", "JSON"),
        ({}, "the tensors end at byte"),
        ({"x": 3}, "'x' is no JSON object"),
        (b'{"x": {}, "x": {}}', "appears twice"),
        ({"__metadata__": {"a": 1}, **entry()}, "__metadata__"),
        (entry(dtype="I64"), "dtype is 'I64'"),
        (entry(dtype=["F32"]), "dtype is"),
        (entry(shape=None), "shape is None"),
        (entry(shape=[2.0]), "shape is"),
        (entry(shape=[-2]), "shape is"),
        (entry(shape=[True, 2]), "shape is"),
        (entry(shape=[2**59]), "takes"),
        (entry(shape=[2**62, 2**62]), "shape is"),
        (entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "shape is"),
        (entry(shape=[3]), "takes 12"),
        (entry(shape=[1] * 33), "shape is"),
        (entry(data_offsets=[0]), "data_offsets is"),
        (entry(data_offsets=[0, 9]), "up to 8"),
        (entry(data_offsets=[8, 0]), "ascending"),
        (entry(data_offsets=[0, 2**70]), "data_offsets is"),
        (entry(data_offsets=[4, 8], shape=[1]), "begins at byte"),
        (entry(data_offsets=[0, 4], shape=[1]), "the tensors end at byte"),
        (dict(entry(), y=entry()["x"]), "overlaps"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(assemble(tmp_path / "file", header, bytes(8)))


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header's length"):
        SafetensorsFile(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="too few"):
        SafetensorsFile(tmp_path / "file")
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "nothing")


def test_mutated_files_never_crash(tmp_path: Path) -> None:
    good = write(tmp_path / "good", TENSORS)
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(1)
    tokens = [b"-", b"9" * 30, b"[", b"]", b"{}", b"null", b'"', b",", b"1e999", b"\\ud800", b"F16"]
    path = tmp_path / "broken"
    n_accepted = 0
    for _ in range(3000):
        broken = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, header_end))
            kind = rng.integers(4)
            if kind == 0:
                broken[at] = rng.integers(256)
            elif kind == 1:
                broken[at : at + int(rng.integers(8))] = tokens[rng.integers(len(tokens))]
            elif kind == 2:
                del broken[int(rng.integers(len(broken))) :]
            else:
                digits = [i for i in range(8, header_end) if chr(broken[i]).isdigit()]
                broken[digits[rng.integers(len(digits))]] = rng.integers(48, 58)
            if len(broken) < header_end:
                break
        path.write_bytes(broken)
        try:
            file = SafetensorsFile(path)
        except CheckpointError:
            continue
        n_accepted += 1
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
    assert n_accepted < 1500  # a mutated name or value may well be valid
