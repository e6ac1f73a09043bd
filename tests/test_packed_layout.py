"""The layout of packed weights, read with NumPy alone, as docs/formats.md describes it.

Where this fails because the layout has changed, kPackingVersion has to be raised and the document
brought up to date: packed files of the old layout are in the world.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from numpy.typing import NDArray

from pyllama2c import _core
from pyllama2c.convert import convert, llama2c

Floats = NDArray[np.float32]


class Image:
    """Walks through the packed weights of a file."""

    def __init__(self, path: Path) -> None:
        file = path.read_bytes()
        begin = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:begin])
        self.metadata = header["__metadata__"]
        self.config = json.loads(self.metadata["config"])
        first, last = header["weights"]["data_offsets"]
        assert (begin + first) % 4096 == 0
        self.bytes = np.frombuffer(file[begin + first : begin + last], np.uint8)
        self.at = 0

    def take(self, dtype: str, *shape: int) -> NDArray[Any]:
        """The next array; each begins at a multiple of 64 bytes."""
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array = self.bytes[self.at : self.at + n].view(dtype).reshape(shape)
        self.at += -(-n // 64) * 64
        return array

    def norm(self) -> Floats:
        return self.take("<f4", -(-self.config["dim"] // 16) * 16)[: self.config["dim"]]

    def matrix(self, n: int, k: int, dtype: str, group_size: int = 0) -> Floats:
        """(16 * panels, k): n rows, and zeros up to the end of the last panel."""
        panels = -(-n // 16)
        if dtype == "float32":
            return self.take("<f4", panels, k, 16).transpose(0, 2, 1).reshape(-1, k)
        if dtype == "bfloat16":
            pairs = self.take("<u2", panels, -(-k // 2), 16, 2)
            rows = pairs.transpose(0, 2, 1, 3).reshape(panels * 16, -1)[:, :k]
            return (rows.astype(np.uint32) << 16).view(np.float32)
        if dtype == "int8":
            quads = self.take("u1", panels, -(-k // 4), 16, 4)
            rows = quads.transpose(0, 2, 1, 3).reshape(panels * 16, -1)[:, :k] - np.float32(128)
            group, scale_type = (
                (group_size, "<f4") if group_size and k % group_size == 0 else (k, "<f4")
            )
        else:
            octets = self.take("u1", panels, -(-k // 8), 16, 4)
            both = np.stack([octets & 15, octets >> 4], axis=3)  # panels, octets, 16, 2, 4
            rows = both.transpose(0, 2, 1, 3, 4).reshape(panels * 16, -1)[:, :k] - np.float32(8)
            group, scale_type = 32, "<f2"
        scales = self.take(scale_type, panels, -(-k // group), 16).astype(np.float32)
        by_row = scales.transpose(0, 2, 1).reshape(panels * 16, -1)
        return rows * by_row.repeat(group, axis=1)[:, :k]


def unpack(image: Image) -> dict[str, Floats]:
    """The tensors of a packed file."""
    c, dtype = image.config, image.metadata["dtype"]
    group_size = int(image.metadata["group_size"])
    dim, hidden, vocab = c["dim"], c["hidden_dim"], c["vocab_size"]
    kv = dim // c["n_heads"] * c["n_kv_heads"]
    small = "int8" if dtype == "int4" else dtype  # what int4 leaves in int8
    narrow = small if dim < 512 else dtype
    tensors = {"tok_embeddings": image.matrix(vocab, dim, small, group_size)[:vocab]}
    for layer in range(c["n_layers"]):
        name = f"layers.{layer}"
        tensors[f"{name}.attention_norm"] = image.norm()
        qkv = image.matrix(dim + 2 * kv, dim, narrow, group_size)
        tensors[f"{name}.attention.wq"] = qkv[:dim]
        tensors[f"{name}.attention.wk"] = qkv[dim : dim + kv]
        tensors[f"{name}.attention.wv"] = qkv[dim + kv : dim + 2 * kv]
        tensors[f"{name}.attention.wo"] = image.matrix(dim, dim, narrow, group_size)[:dim]
        tensors[f"{name}.ffn_norm"] = image.norm()
        padded = -(-hidden // 16) * 16
        gate_up = image.matrix(2 * padded, dim, dtype, group_size).reshape(-1, 2, 16, dim)
        tensors[f"{name}.feed_forward.w1"] = gate_up[:, 0].reshape(padded, dim)[:hidden]
        tensors[f"{name}.feed_forward.w3"] = gate_up[:, 1].reshape(padded, dim)[:hidden]
        tensors[f"{name}.feed_forward.w2"] = image.matrix(dim, hidden, narrow, group_size)[:dim]
    tensors["norm"] = image.norm()
    if not c["tied_embeddings"]:
        tensors["output"] = image.matrix(vocab, dim, small, group_size)[:vocab]
    assert image.at == len(image.bytes)
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["odd sizes", "untied", "hidden 2268", "wide"])
def test_packed_weights_lie_as_documented(tmp_path: Path, name: str, dtype: str) -> None:
    wide = models.ModelConfig(520, 40, 1, 4, 2, 20, 16)  # int4 throughout
    checkpoint = models.checkpoint_of(wide if name == "wide" else models.CONFIGS[name])
    with (tmp_path / "model.bin").open("wb") as file:
        llama2c.write_v0(file, checkpoint)
    convert(tmp_path / "model.bin", tmp_path / "packed", to="packed", dtype=dtype)
    image = Image(tmp_path / "packed")
    assert image.metadata["version"] == str(_core.PACKING_VERSION) == "1"
    tensors = unpack(image)
    assert {f"{name}.weight" for name in tensors} == set(checkpoint.tensors)
    # Of a weight's own size (bfloat16), or of the largest in its row. int4 cuts off a little.
    tolerance = {"float32": 0, "bfloat16": 2**-8, "int8": 0.505 / 127, "int4": 0.23}[dtype]
    for tensor, values in tensors.items():
        expected = checkpoint.tensors[f"{tensor}.weight"]
        if expected.ndim == 1:
            assert np.array_equal(values, expected)
            continue
        errors, sizes = np.abs(values - expected), np.abs(expected)
        largest = sizes if dtype == "bfloat16" else sizes.max(axis=1, keepdims=True)
        assert (errors <= tolerance * largest).all(), tensor
        assert np.linalg.norm(errors) <= 0.1 * np.linalg.norm(sizes), tensor


def test_groups_of_a_v2_file_lie_as_documented(tmp_path: Path) -> None:
    checkpoint = models.checkpoint_of(models.CONFIGS["multi-head"])
    with (tmp_path / "model.bin").open("wb") as file:
        llama2c.write_v2(file, checkpoint, 16)
    convert(tmp_path / "model.bin", tmp_path / "packed", to="packed")
    image = Image(tmp_path / "packed")
    assert image.metadata["group_size"] == "16"
    for tensor, values in unpack(image).items():
        expected = checkpoint.tensors[f"{tensor}.weight"]
        if expected.ndim == 2:
            numbers, scales = llama2c.quantize(expected, 16)
            expected = (numbers * scales[:, None]).reshape(expected.shape)
        assert np.array_equal(values, expected), tensor
