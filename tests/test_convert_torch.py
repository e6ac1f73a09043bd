"""Checkpoints that PyTorch pickled: llama2.c's ckpt.pt, Meta's originals, pytorch_model.bin."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIGS, checkpoint_of

from pyllama2c import Model
from pyllama2c.checkpoint import Checkpoint
from pyllama2c.checkpoint.safetensors_file import SafetensorsFile
from pyllama2c.convert import convert, open_any
from pyllama2c.convert.huggingface import write_hf
from pyllama2c.errors import CheckpointError

torch = pytest.importorskip("torch")

MODEL = checkpoint_of(CONFIGS["grouped-query"])


def tensors(checkpoint: Checkpoint, dtype: Any = torch.float32) -> dict[str, Any]:
    return {name: torch.tensor(w).to(dtype) for name, w in checkpoint.tensors.items()}


def check_equal(opened: Checkpoint, expected: Checkpoint) -> None:
    assert opened.config == expected.config
    assert set(opened.tensors) == set(expected.tensors)
    for name, weight in expected.tensors.items():
        np.testing.assert_array_equal(opened.tensors[name], weight)


def llama2c_args(checkpoint: Checkpoint) -> dict[str, Any]:
    keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    args: dict[str, Any] = {key: getattr(checkpoint.config, key) for key in keys}
    return {**args, "multiple_of": 4, "dropout": 0.0}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_llama2c_training_checkpoint(tmp_path: Path, prefix: str, zipped: bool) -> None:
    model = {f"{prefix}{name}": tensor for name, tensor in tensors(MODEL).items()}
    # PyTorch stores a shared classifier under both names, and old versions their tables.
    model[f"{prefix}output.weight"] = model[f"{prefix}tok_embeddings.weight"]
    model[f"{prefix}freqs_cos"] = torch.ones(64, 4)
    content = {"model": model, "model_args": llama2c_args(MODEL), "optimizer": {}, "iter_num": 7}
    path = tmp_path / "ckpt.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    opened = open_any(path)
    check_equal(opened, MODEL)
    with pytest.raises(
        CheckpointError, match=r"convert it first: pyllama2c convert .*ckpt\.pt DIR"
    ):
        Model(path)
    convert(path, tmp_path / "model.bin", to="v1")
    check_equal(open_any(tmp_path / "model.bin"), MODEL)


def test_an_untied_classifier_stays(tmp_path: Path) -> None:
    untied = checkpoint_of(CONFIGS["untied"])
    content = {"model": tensors(untied), "model_args": llama2c_args(untied)}
    torch.save(content, tmp_path / "ckpt.pt")
    check_equal(open_any(tmp_path / "ckpt.pt"), untied)


def write_meta(directory: Path, model: Checkpoint, n_ranks: int, split_rows: bool) -> None:
    """As Meta's model-parallel training leaves it: rows of some tensors, columns of others."""
    config = model.config
    params = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads}
    params |= {"n_kv_heads": config.n_kv_heads, "vocab_size": -1, "multiple_of": 4}
    params |= {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
    directory.mkdir(exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params))
    for rank in range(n_ranks):
        state = {"rope.freqs": torch.ones(4)}
        for name, tensor in tensors(model, torch.bfloat16).items():
            by_columns = name.endswith(("wo.weight", "w2.weight"))
            if name == "tok_embeddings.weight":
                by_columns = not split_rows
            parts = [tensor] * n_ranks
            if tensor.ndim == 2:
                parts = list(tensor.chunk(n_ranks, dim=int(by_columns)))
            state[name] = parts[rank].clone()
        torch.save(state, directory / f"consolidated.{rank:02}.pth")


@pytest.mark.parametrize("split_rows", [False, True])  # Llama 2's and Llama 3's embedding
@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_meta_checkpoint(tmp_path: Path, n_ranks: int, split_rows: bool) -> None:
    config = dataclasses.replace(
        CONFIGS["grouped-query"], tied_embeddings=False, rope_theta=500000.0, max_seq_len=2048
    )
    model = checkpoint_of(config)
    write_meta(tmp_path, model, n_ranks, split_rows)
    with pytest.raises(CheckpointError, match="weights of Meta that PyTorch pickled"):
        Model(tmp_path)
    opened = open_any(tmp_path)
    assert opened.config == config
    assert opened.dtype == "bfloat16"
    convert(tmp_path, tmp_path / "hf")
    stored = SafetensorsFile(tmp_path / "hf" / "model.safetensors")
    assert {info.dtype for info in stored.tensors.values()} == {"bfloat16"}
    again = open_any(tmp_path / "hf")
    for name, weight in tensors(model, torch.bfloat16).items():
        bits = weight.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(opened.tensors[name], bits)
        np.testing.assert_array_equal(again.tensors[name], bits)


@pytest.mark.parametrize("setting", [{"use_scaled_rope": True}, {"rope_scaling_factor": 8.0}])
def test_meta_with_scaled_rope_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    write_meta(tmp_path, checkpoint_of(CONFIGS["untied"]), 1, True)
    params = json.loads((tmp_path / "params.json").read_text()) | setting
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(CheckpointError, match=next(iter(setting))):
        open_any(tmp_path)


def test_meta_ranks_that_differ_are_refused(tmp_path: Path) -> None:
    write_meta(tmp_path, checkpoint_of(CONFIGS["untied"]), 2, True)
    torch.save({"norm.weight": torch.ones(32)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match="different tensors"):
        open_any(tmp_path)


def test_meta_ranks_of_differing_shapes_are_refused(tmp_path: Path) -> None:
    write_meta(tmp_path, checkpoint_of(CONFIGS["untied"]), 2, True)
    state = torch.load(tmp_path / "consolidated.01.pth")
    torch.save(state | {"norm.weight": torch.ones(3)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"norm\.weight in different shapes"):
        open_any(tmp_path)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_hugging_face_before_safetensors(tmp_path: Path, n_shards: int) -> None:
    write_hf(tmp_path, MODEL, "float32", {})
    stored = SafetensorsFile(tmp_path / "model.safetensors")
    state = {name: torch.tensor(stored.read(name)) for name in stored.tensors}
    (tmp_path / "model.safetensors").unlink()
    if n_shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        names = list(state)
        weight_map = {}
        for shard in range(n_shards):
            file = f"pytorch_model-{shard + 1:05}-of-{n_shards:05}.bin"
            part = {name: state[name] for name in names[shard::n_shards]}
            torch.save(part, tmp_path / file)
            weight_map |= dict.fromkeys(part, file)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    check_equal(open_any(tmp_path), MODEL)
    with pytest.raises(CheckpointError, match="weights of Hugging Face that PyTorch pickled"):
        Model(tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 nonsense", b"\x80\x02 nonsense"])
def test_a_broken_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        open_any(tmp_path / "ckpt.pt")


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was run",)

    torch.save({"model": Attack(), "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError):
        open_any(tmp_path / "ckpt.pt")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model_args"), "model_args"),
        (lambda c: c["model_args"].pop("n_layers"), "n_layers"),
        (lambda c: c["model_args"].update(n_heads=5), "n_heads is 5"),
        (lambda c: c["model"].pop("layers.1.attention.wk.weight"), r"layers\.1\.attention\.wk"),
        (lambda c: c["model"].pop("norm.weight"), r"norm\.weight is missing"),
        (lambda c: c.update(model=[]), "holds a list, expected tensors by name"),
        (lambda c: c["model"].update({"norm.weight": {"a": 1}}), "'norm.weight' is a dict"),
        (lambda c: c["model"].update({3: torch.ones(2)}), "3 is a Tensor"),
        (lambda c: c["model"].update({"norm.weight": torch.ones(2, 2)}), "has 2 axes"),
        (lambda c: c["model_args"].update(n_layers=2**31 - 1), "n_layers is 2147483647, but"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = {"model": tensors(MODEL), "model_args": llama2c_args(MODEL)}
    change(content)
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=message):
        open_any(tmp_path / "ckpt.pt")


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "ckpt.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pyllama2c.cli import main\n"
        "main(['convert', sys.argv[1], sys.argv[2]])\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "ckpt.pt"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pyllama2c[train]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
