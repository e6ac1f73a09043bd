"""Packed files: the bits of quantizing on load, in place, with a tokenizer; and hostile ones."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import models
import numpy as np
import pytest
from numpy.typing import NDArray

from pyllama2c import ArgumentError, CheckpointError, Model, TokenizerError
from pyllama2c.convert import convert, llama2c

DTYPES = ["float32", "bfloat16", "int8", "int4"]
IDS = [1, 5, 3, 60, 2, 7, 7, 0, 11, 95, 4, 6]


def write(path: Path, name: str, version: int = 0) -> Path:
    checkpoint = models.checkpoint_of(models.CONFIGS[name])
    with path.open("wb") as file:
        if version == 2:
            llama2c.write_v2(file, checkpoint, 16)
        else:
            llama2c.write_v0(file, checkpoint)
    return path


def logits(path: Path, **options: Any) -> NDArray[np.float32]:
    with Model(path, **options) as model:
        ids = [i for i in IDS if i < model.config.vocab_size]
        return model.logits(ids[: model.config.max_seq_len])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", models.CONFIGS)
def test_the_same_bits_as_quantizing_on_load(tmp_path: Path, name: str, dtype: str) -> None:
    source = write(tmp_path / "model.bin", name)
    packed = tmp_path / "packed.safetensors"
    done = convert(source, packed, dtype=dtype)
    assert (done.target, done.dtype, done.files) == ("pyllama2c packed", dtype, [packed.name])
    expected = logits(source, dtype=dtype)
    assert np.array_equal(logits(packed), expected)
    assert np.array_equal(logits(packed, dtype=dtype, mmap=False), expected)
    with Model(source) as model, Model(packed) as loaded:
        assert loaded.config == model.config


@pytest.mark.parametrize("dtype", ["auto", "int8", "int4"])
def test_int8_values_of_a_v2_file_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    source = write(tmp_path / "model.bin", "multi-head", version=2)
    packed = tmp_path / "packed.safetensors"
    convert(source, packed, dtype=None if dtype == "auto" else dtype)
    assert np.array_equal(logits(packed), logits(source, dtype=dtype))


def test_a_hugging_face_directory(tmp_path: Path, speaker: Path) -> None:
    convert(speaker, tmp_path / "hf", dtype="bfloat16")
    convert(tmp_path / "hf", tmp_path / "kept.safetensors")
    convert(tmp_path / "hf", tmp_path / "int4.safetensors", dtype="int4")
    assert np.array_equal(logits(tmp_path / "kept.safetensors"), logits(tmp_path / "hf"))
    expected = logits(tmp_path / "hf", dtype="int4")
    assert np.array_equal(logits(tmp_path / "int4.safetensors"), expected)


def test_the_special_tokens_of_a_hugging_face_directory(tmp_path: Path, speaker: Path) -> None:
    convert(speaker, tmp_path / "hf")
    config = tmp_path / "hf" / "generation_config.json"
    config.write_text(json.dumps({"bos_token_id": 7, "eos_token_id": [2, *range(100, 420)]}))
    convert(tmp_path / "hf", tmp_path / "packed.safetensors")
    with Model(tmp_path / "hf") as model, Model(tmp_path / "packed.safetensors") as packed:
        assert (packed._bos_id, packed._eos_ids) == (7, (2, *range(100, 420)))
        expected = model.generate("Once", temperature=0, max_tokens=50)
        assert expected.finish_reason == "stop"
        again = packed.generate("Once", temperature=0, max_tokens=50)
        assert (again.token_ids, again.finish_reason) == (expected.token_ids, "stop")


def test_one_file_is_the_whole_model(tmp_path: Path, speaker: Path) -> None:
    path = tmp_path / "speaker"  # told apart by content, not by name
    convert(speaker, path, dtype="int8")
    with Model(speaker, dtype="int8") as model, Model(path) as packed:
        assert packed.tokenizer is not None
        assert packed.tokenizer.path == path
        for prompt in ("Once", ""):
            got = packed.generate(prompt, temperature=1, seed=5, max_tokens=20)
            assert got.text == model.generate(prompt, temperature=1, seed=5, max_tokens=20).text
        about = packed.info()
    assert (about["format"], about["stored_dtype"]) == ("pyllama2c packed", "int8")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weights_that_are_no_numbers_are_not_quantized(
    tmp_path: Path, dtype: Literal["int8", "int4"]
) -> None:
    config = models.CONFIGS["multi-head"]
    for value in (np.nan, np.inf):
        tensors = models.random_tensors(config)
        tensors["layers.1.attention.wv.weight"][3, 3] = value
        source = models.write_v0(tmp_path / "model.bin", config, tensors)
        hf = convert(source, tmp_path / f"hf-{value}", dtype="float32").path
        for path in (source, hf):
            message = (
                rf"{re.escape(str(path))}: tensor layers\.1\.attention\.wv\.weight holds an inf"
            )
            with pytest.raises(CheckpointError, match=message):
                Model(path, dtype=dtype)
            with pytest.raises(CheckpointError, match=message):
                convert(path, tmp_path / "packed.safetensors", dtype=dtype)
        assert not (tmp_path / "packed.safetensors").exists()
        Model(source, dtype="bfloat16").close()
    quantized = write(tmp_path / "quantized.bin", "multi-head", version=2)
    data = quantized.read_bytes()  # a scale of the last tensor ends it
    quantized.write_bytes(data[:-4] + struct.pack("<f", np.nan))
    with pytest.raises(CheckpointError, match=r"layers\.\d\.feed_forward\.w3\.weight holds an inf"):
        Model(quantized, dtype=dtype)


def test_weights_too_large_for_int4s_scales_are_refused(tmp_path: Path) -> None:
    config = models.CONFIGS["multi-head"]
    tensors = models.random_tensors(config)
    weights = tensors["layers.0.feed_forward.w1.weight"]
    for value in (393024.0, -393024.0):  # 6 steps of 65504
        weights[2, 1] = value
        Model(models.write_v0(tmp_path / "model.bin", config, tensors), dtype="int4").close()
    weights[2, 1] = np.nextafter(np.float32(393024), np.float32(np.inf))
    path = models.write_v0(tmp_path / "model.bin", config, tensors)
    with pytest.raises(CheckpointError, match=r"feed_forward\.w1\.weight .* beyond 393024"):
        Model(path, dtype="int4")
    Model(path, dtype="int8").close()


def test_weights_too_large_for_bfloat16_are_refused(tmp_path: Path) -> None:
    config = models.CONFIGS["multi-head"]
    tensors = models.random_tensors(config)
    weights = tensors["layers.0.feed_forward.w1.weight"]
    too_large = np.float32(float.fromhex("0x1.ffp127"))  # half a step beyond the largest
    weights[2, 1] = -np.nextafter(too_large, np.float32(0))
    weights[2, 2] = np.inf  # which it does hold
    Model(models.write_v0(tmp_path / "model.bin", config, tensors), dtype="bfloat16").close()
    weights[2, 1] = -too_large
    path = models.write_v0(tmp_path / "model.bin", config, tensors)
    with pytest.raises(CheckpointError, match=r"feed_forward\.w1\.weight .* beyond 3\.39e38"):
        Model(path, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"expected dtype float32"):
        convert(path, tmp_path / "packed.safetensors", dtype="bfloat16")
    Model(path).close()


def test_without_a_tokenizer_the_one_beside_it_is_taken(tmp_path: Path, speaker: Path) -> None:
    alone = tmp_path / "alone.bin"
    alone.write_bytes(speaker.read_bytes())
    done = convert(alone, tmp_path / "alone.safetensors", dtype="int8")
    assert "no tokenizer" in done.notes[0]
    with Model(tmp_path / "alone.safetensors") as model:
        assert model.tokenizer is None
    (tmp_path / "tokenizer.model").write_bytes((speaker.parent / "tokenizer.model").read_bytes())
    with Model(tmp_path / "alone.safetensors") as model:
        assert model.tokenizer is not None


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_mapped_or_copied(tmp_path: Path, speaker: Path) -> None:
    path = tmp_path / "speaker.safetensors"
    convert(speaker, path, dtype="int8")
    with Model(path) as model:
        assert model.info()["mapped"]
        assert is_mapped(path)
        path.unlink()  # what is mapped stays
        assert model.generate([1, 2], max_tokens=4).usage.prompt_tokens == 2
    assert not is_mapped(path)
    convert(speaker, path, dtype="int8")
    with Model(path, mmap=False) as model:
        assert not model.info()["mapped"]
        assert not is_mapped(path)
    with Model(speaker, mmap=False) as model:
        assert not is_mapped(speaker)
    with pytest.raises(ArgumentError, match=r"mmap is true, but .*model.bin stores no packed"):
        Model(speaker, mmap=True)


def test_what_cannot_be_asked_of_a_packed_file(tmp_path: Path, speaker: Path) -> None:
    path = tmp_path / "speaker.safetensors"
    convert(speaker, path, dtype="int8")
    with pytest.raises(ArgumentError, match=r"dtype is 'int4', but .* stores packed int8"):
        Model(path, dtype="int4")
    with pytest.raises(CheckpointError, match="packed cannot be unpacked"):
        convert(path, tmp_path / "back.bin", to="v0")
    with pytest.raises(ArgumentError, match="the source itself"):
        convert(speaker, speaker, dtype="int8", force=True)
    hf = tmp_path / "hf"
    convert(speaker, hf)
    with pytest.raises(ArgumentError, match="a part of it"):
        convert(hf, hf / "model.safetensors", dtype="int8", force=True)
    for force in (False, True):  # another file there is no part of it
        convert(hf, hf / "int8.safetensors", dtype="int8", force=force)
    for use in (Model, lambda source: convert(source, tmp_path / "back.bin", to="v0")):
        with pytest.raises(CheckpointError, match="by the name of their directory"):
            use(hf / "model.safetensors")
    with pytest.raises(ArgumentError, match="dtype is 'float16', expected float32 or bfloat16 or"):
        convert(speaker, tmp_path / "half.safetensors", dtype="float16")
    with pytest.raises(ArgumentError, match="exists; use --force"):
        convert(speaker, path, dtype="int8")


def test_the_commands(cli: Callable[..., Any], tmp_path: Path, speaker: Path) -> None:
    path = tmp_path / "speaker.safetensors"
    result = cli("convert", speaker, path, "--dtype", "int4")
    assert result.status == 0
    assert f"wrote {path}: pyllama2c packed, int4 (speaker.safetensors)" in result.stdout
    shown = cli("info", path).stdout
    assert "pyllama2c packed, int4" in shown
    assert "mapped from the file" in shown
    assert "(SentencePiece, 420 pieces)" in shown
    assert cli("run", path, "-t", 0, "-n", 5).status == 0


# ---- hostile files -------------------------------------------------------------------------


def make(header: dict[str, Any], data: bytes, pad: int = 4096) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % pad)
    return len(text).to_bytes(8, "little") + text + data


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    convert(write(folder / "model.bin", "untied"), folder / "packed", dtype="int8")
    return (folder / "packed").read_bytes()


def refuses(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as raised:
        Model(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "pt"}, "format is 'pt'"),
        ({"version": "2"}, "version is '2', this pyllama2c reads '1'"),
        ({"dtype": "int3"}, "dtype is 'int3', expected one of float32"),
        ({"dtype": "int4"}, "packed weights have .* bytes, expected"),
        ({"group_size": "-1"}, "group_size is '-1'"),
        ({"group_size": "²"}, "group_size is '²'"),
        ({"group_size": "8"}, "group_size is 8, expected a multiple of 16"),
        ({"group_size": "99999984"}, "group_size is 99999984"),
        ({"group_size": "16"}, "packed weights have .* bytes, expected"),
        ({"config": "{}"}, "config: dim is missing"),
        ({"config": "[" * 100_000}, "config: "),
        ({"config": "[1]"}, r"config: it is \[1\], expected an object"),
    ],
    ids=str,
)
def test_metadata_is_checked(
    tmp_path: Path, good: bytes, change: dict[str, str], match: str
) -> None:
    header, data = split(good)
    header["__metadata__"] |= change
    refuses(tmp_path / "bad", make(header, data), match)
    for name in change:
        del header["__metadata__"][name]
        refuses(tmp_path / "bad", make(header, data), name)


@pytest.mark.parametrize("ids", ["", "2 x", "-1", "²", "2147483648", "9" * 5000])
def test_special_tokens_are_checked(tmp_path: Path, good: bytes, ids: str) -> None:
    header, data = split(good)
    for name in ("bos_id", "eos_ids"):
        metadata = header["__metadata__"] | {name: ids}
        content = make(header | {"__metadata__": metadata}, data, pad=1 << 16)
        refuses(tmp_path / "bad", content, f"{name} is .*, expected token ids")


def test_there_is_one_beginning(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    header["__metadata__"]["bos_id"] = "1 2"
    refuses(tmp_path / "bad", make(header, data), "bos_id is '1 2', expected one token")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("dim", 0, "config: dim is 0"),
        ("dim", True, "config: dim is True"),
        ("dim", 1e3, "config: dim is 1000.0"),
        ("dim", 2**24 * 2, "dim is 33554432, expected 1 to 16777216"),
        ("n_layers", 2**31, "config: n_layers is 2147483648"),
        ("n_layers", 65536, "packed weights have"),
        ("vocab_size", 97 + 16, "packed weights have"),
        ("rope_theta", float("nan"), "config: rope_theta is nan"),
        ("norm_eps", "small", "config: norm_eps is 'small'"),
        ("n_experts", 8, "config: n_experts has no place"),
    ],
)
def test_the_config_is_checked(
    tmp_path: Path, good: bytes, field: str, value: Any, match: str
) -> None:
    header, data = split(good)
    config = json.loads(header["__metadata__"]["config"]) | {field: value}
    header["__metadata__"]["config"] = json.dumps(config)
    refuses(tmp_path / "bad", make(header, data), match)


def test_sizes_beyond_64_bits_do_not_wrap_around(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    config = json.loads(header["__metadata__"]["config"])
    config |= {"dim": 2**24, "hidden_dim": 2**24, "n_heads": 1, "n_kv_heads": 1, "n_layers": 2**16}
    header["__metadata__"]["config"] = json.dumps(config)
    refuses(tmp_path / "bad", make(header, data), "more than 2.52 bytes of weights")


def test_tensors_are_checked(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    size = header["weights"]["shape"][0]
    path = tmp_path / "bad"
    refuses(path, make(header, data, pad=8 * 1237), "not aligned")
    refuses(path, make(header, data[:-1]), "expected an ascending pair up to")
    refuses(path, make(header, data + b"\0"), "the file at")
    entry = {"dtype": "U8", "shape": [size - 64], "data_offsets": [0, size - 64]}
    refuses(path, make(header | {"weights": entry}, data[:-64]), "packed weights have")
    refuses(path, make(header | {"weights": entry | {"dtype": "I8"}}, data), "dtype is 'I8'")
    floats = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    refuses(path, make(header | {"weights": floats}, data), "dtype is float32, expected U8")
    extra = {"dtype": "U8", "shape": [1], "data_offsets": [size, size + 1]}
    refuses(path, make(header | {"more": extra}, data + b"\0"), "'more' has no place")
    del header["weights"]
    refuses(path, make(header, b""), "tensor 'weights' is missing")


def test_a_broken_tokenizer_is_refused(tmp_path: Path, good: bytes) -> None:
    header, data = split(good)
    size = header["weights"]["shape"][0]
    header["tokenizer"] = {"dtype": "U8", "shape": [5], "data_offsets": [size, size + 5]}
    (tmp_path / "bad").write_bytes(make(header, data + b"hello"))
    with pytest.raises(TokenizerError, match=r"bad: not a SentencePiece model"):
        Model(tmp_path / "bad")


def test_every_truncation_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "cut"
    for size in [*range(0, 4096, 61), *range(4096, len(good), 997), len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError):
            Model(path)


def test_mutated_headers_never_crash(tmp_path: Path, good: bytes) -> None:
    end = len(good) - len(split(good)[1])
    text_end = len(good[:end].rstrip(b" "))
    rng = np.random.default_rng(1)
    tokens = [b"-", b"0", b"9" * 30, b"65536", b"16777216", b"[", b"]", b"{}", b'"', b",", b"1e9"]
    path = tmp_path / "broken"
    n_accepted = 0
    for _ in range(1500):
        broken = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, text_end))
            kind = rng.integers(4)
            if kind == 0:
                broken[at] = rng.integers(256)
            elif kind == 1:
                token = tokens[rng.integers(len(tokens))]
                broken[at : at + len(token)] = token
            else:
                digits = [i for i in range(8, text_end) if chr(broken[i]).isdigit()]
                broken[digits[rng.integers(len(digits))]] = rng.integers(48, 58)
        path.write_bytes(broken)
        try:
            model = Model(path, n_threads=1)
        except CheckpointError:
            continue
        with model:
            n_accepted += 1
            model.logits([1, 2, 3])
    assert 0 < n_accepted < 700  # the context, rope_theta and norm_eps may well be others
