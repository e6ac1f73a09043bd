"""Reading checkpoints that PyTorch pickled: llama2.c's, Meta's original ones, older Hugging Face.

The only part of converting that needs torch. Nothing is executed from a pickle: torch loads with
``weights_only``, and maps the file instead of reading it where its format allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama2c.checkpoint.base import (
    Checkpoint,
    LazyTensors,
    check_layers,
    check_shapes,
    tensor_shapes,
)
from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.checkpoint.huggingface import from_hf_tensors, read_config, read_json
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

# llama2.c's choice for Meta's checkpoints, which say nothing of their context.
META_MAX_SEQ_LEN = 2048
# Tensors that follow from the config.
_DERIVED = ("freqs_cos", "freqs_sin", "rope.freqs", "freqs_cis")


def load_llama2c_pt(path: Path) -> Checkpoint:
    """Open the ``ckpt.pt`` that llama2.c's ``train.py`` writes."""
    content = _load(path)
    if "model" not in content or not isinstance(content.get("model_args"), dict):
        raise CheckpointError(f"{path}: no 'model' and 'model_args', so no checkpoint of llama2.c")
    args = content["model_args"]
    # torch.compile puts a prefix before every name.
    state = {
        name.removeprefix("_orig_mod."): t for name, t in _state(path, content["model"]).items()
    }
    return _open_state(
        path,
        {name: [tensor] for name, tensor in state.items()},
        args,
        max_seq_len=args.get("max_seq_len"),
        kind="llama2.c PyTorch",
    )


def load_meta(directory: Path) -> Checkpoint:
    """Open ``params.json`` and ``consolidated.*.pth`` as Meta published them.

    Each file holds one model-parallel rank's part of every tensor; the parts are joined when a
    tensor is read. ``params.json`` says nothing of the context: `META_MAX_SEQ_LEN` is assumed.
    """
    params = read_json(directory / "params.json")
    if params.get("use_scaled_rope"):
        raise CheckpointError(f"{directory}: use_scaled_rope is set, scaled rope is not supported")
    if params.get("rope_scaling_factor") not in (None, 1):
        raise CheckpointError(
            f"{directory}: rope_scaling_factor is {params['rope_scaling_factor']!r}, "
            "only 1 is supported"
        )
    files = sorted(directory.glob("consolidated.*.pth"))
    ranks = [_state(path, _load(path)) for path in files]
    names = ranks[0].keys()
    if any(rank.keys() != names for rank in ranks):
        raise CheckpointError(f"{directory}: the consolidated.*.pth hold different tensors")
    for name in names:
        if len({rank[name].shape for rank in ranks}) > 1:
            raise CheckpointError(
                f"{directory}: the consolidated.*.pth hold {name} in different shapes"
            )
    parts = {name: [rank[name] for rank in ranks] for name in names}
    max_seq_len = params.get("max_seq_len", META_MAX_SEQ_LEN)
    return _open_state(directory, parts, params, max_seq_len, kind="Meta")


def load_hf_bin(directory: Path) -> Checkpoint:
    """Open a Hugging Face directory with ``pytorch_model.bin`` or its shards."""
    config = read_config(directory / "config.json")
    index = directory / "pytorch_model.bin.index.json"
    if (directory / "pytorch_model.bin").exists():
        files = ["pytorch_model.bin"]
    else:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: weight_map is missing")
        files = sorted({Path(str(name)).name for name in weight_map.values()})
    state: dict[str, Tensor] = {}
    for name in files:
        if not (directory / name).exists():
            raise CheckpointError(f"{directory}: the shard {name} is missing")
        state |= _state(directory / name, _load(directory / name))
    return from_hf_tensors(
        directory,
        config,
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        lambda name: _to_numpy(directory, name, state[name]),
        {name: _dtype(tensor) for name, tensor in state.items()},
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            f'{path} was written by PyTorch; reading it needs torch: pip install "pyllama2c[train]"'
        ) from None
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the older format cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types here
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: torch cannot load it: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    return content


def _state(path: Path, content: Any) -> dict[str, Tensor]:
    """Tensors by name, and nothing else."""
    from torch import Tensor

    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r:.80} is a {type(value).__name__}, expected tensors by name"
            )
    return content


def _open_state(
    path: Path,
    parts: Mapping[str, list[Tensor]],
    args: Mapping[str, Any],
    max_seq_len: Any,
    kind: str,
) -> Checkpoint:
    """A Checkpoint from tensors in Meta's names, each in one part or more."""
    parts = {name: tensors for name, tensors in parts.items() if not name.endswith(_DERIVED)}
    needed = {"tok_embeddings.weight": 2, "layers.0.feed_forward.w1.weight": 2, "norm.weight": 1}
    for name, n_axes in needed.items():
        if name not in parts:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        if parts[name][0].ndim != n_axes:
            raise CheckpointError(f"{path}: tensor {name} has {parts[name][0].ndim} axes")
    (dim,) = parts["norm.weight"][0].shape
    axes = {name: _axis(name, tensors, dim) for name, tensors in parts.items()}
    shapes = {name: _joined_shape(tensors, axes[name]) for name, tensors in parts.items()}

    def read(name: str) -> Array:
        arrays = [_to_numpy(path, name, tensor) for tensor in parts[name]]
        axis = axes[name]
        return arrays[0] if axis is None or len(arrays) == 1 else np.concatenate(arrays, axis)

    # PyTorch writes a shared classifier twice.
    tied = "output.weight" not in parts or np.array_equal(
        read("output.weight"), read("tok_embeddings.weight")
    )
    try:
        config = ModelConfig(
            dim=dim,
            # Neither file says it; both compute it, from dim and two more numbers.
            hidden_dim=shapes["layers.0.feed_forward.w1.weight"][0],
            n_layers=args["n_layers"],
            n_heads=args["n_heads"],
            n_kv_heads=args.get("n_kv_heads") or args["n_heads"],
            vocab_size=shapes["tok_embeddings.weight"][0],  # params.json may say -1
            max_seq_len=max_seq_len,
            rope_theta=args.get("rope_theta", 10000.0),
            norm_eps=args.get("norm_eps", 1e-5),
            tied_embeddings=tied,
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    except ArgumentError as error:
        raise CheckpointError(f"{path}: {error}") from None
    check_layers(path, config.n_layers, len(parts))
    expected = tensor_shapes(config)
    if tied:
        shapes.pop("output.weight", None)
    check_shapes(path, expected, shapes)
    readers: dict[str, Callable[[], Array]] = {name: partial(read, name) for name in expected}
    dtypes = {_dtype(tensors[0]) for tensors in parts.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return Checkpoint(config, LazyTensors(readers), kind, dtype, path)


def _axis(name: str, tensors: list[Tensor], dim: int) -> int | None:
    """The axis along which model-parallel ranks hold parts of a tensor; None if all hold it all."""
    if tensors[0].ndim < 2:
        return None
    if re.search(r"(attention\.wo|feed_forward\.w2)\.weight$", name):
        return 1
    # Llama 1 and 2 split the embedding's columns, Llama 3 its rows.
    return 1 if name == "tok_embeddings.weight" and tensors[0].shape[1] < dim else 0


def _joined_shape(tensors: list[Tensor], axis: int | None) -> tuple[int, ...]:
    shape = list(tensors[0].shape)
    if axis is not None:
        shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return tuple(shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _to_numpy(path: Path, name: str, tensor: Tensor) -> Array:
    dtype = _dtype(tensor)
    if dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(
            f"{path}: tensor {name} is {dtype}, expected float32, float16 or bfloat16"
        )
    tensor = tensor.detach().contiguous()
    if dtype == "bfloat16":  # NumPy has none: its bits as uint16
        import torch

        bits: Array = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: Array = tensor.numpy()
    return array
