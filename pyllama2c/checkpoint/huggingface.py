"""Hugging Face directories of Llama models: ``config.json`` and safetensors, in one file or many.

Hugging Face names the tensors differently and stores the rows of the query and key projections so
that rotary embedding turns element ``i`` of a head with ``i + head_size / 2``; Meta's layout turns
the neighbours ``2i`` and ``2i + 1``. `to_interleaved` and `to_half_split` reorder the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyllama2c.checkpoint.base import (
    Checkpoint,
    LazyTensors,
    check_layers,
    check_shapes,
    tensor_shapes,
)
from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.checkpoint.safetensors_file import SafetensorsFile
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError

_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_OTHER_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# Of ModelConfig's fields.
_CONFIG_NAMES = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}
_PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def n_rotated_heads(name: str, config: ModelConfig) -> int:
    """Number of heads in the rows of a tensor that rotary embedding turns; 0 for any other."""
    if name.endswith(".attention.wq.weight"):
        return config.n_heads
    return config.n_kv_heads if name.endswith(".attention.wk.weight") else 0


def to_half_split(weight: Array, n_heads: int) -> Array:
    """Reorder the rows of ``wq`` or ``wk``, (n_heads * head_size, dim), from Meta's layout."""
    rows, dim = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, dim)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, dim)


def to_interleaved(weight: Array, n_heads: int) -> Array:
    """Reorder the rows of ``wq`` or ``wk``, (n_heads * head_size, dim), to Meta's layout."""
    rows, dim = weight.shape
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, dim)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, dim)


def load_hf(directory: str | Path) -> Checkpoint:
    """Open a Hugging Face directory of a Llama model with safetensors weights.

    Raises:
        CheckpointError: it is no Llama model, uses a variant that is not supported (the message
            names it: a rope scaling, biases, another activation, quantized weights, ...), or its
            files are incomplete or inconsistent.
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    stored = _open_shards(directory)
    return from_hf_tensors(
        directory,
        config,
        {name: file.tensors[name].shape for name, file in stored.items()},
        lambda name: stored[name].read(name),
        {name: file.tensors[name].dtype for name, file in stored.items()},
    )


def from_hf_tensors(
    directory: Path,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Array],
    dtypes: Mapping[str, str],
) -> Checkpoint:
    """A Checkpoint from tensors in Hugging Face's names and layout, wherever they come from."""
    check_layers(directory, config.n_layers, len(shapes), "num_hidden_layers")
    expected = tensor_shapes(config)
    found = {
        name: shape
        for name, shape in shapes.items()
        # Frequencies that follow from the config; stored by old versions of transformers.
        if not name.endswith(".rotary_emb.inv_freq")
    }
    head = _OTHER_NAMES["output.weight"]
    if config.tied_embeddings and head in found:
        table = _OTHER_NAMES["tok_embeddings.weight"]
        if table not in found:  # stored once, under the other name
            found[table], dtypes = found[head], {**dtypes, table: dtypes[head]}
            stored = read

            def read(name: str) -> Array:
                return stored(head if name == table else name)
        elif not np.array_equal(read(head), read(table)):
            raise CheckpointError(
                f"{directory}: tie_word_embeddings is true, but {head} differs from {table}"
            )
        del found[head]
    check_shapes(directory, {hf_name(name): shape for name, shape in expected.items()}, found)
    readers = {name: partial(_read, read, name, config) for name in expected}
    stored_as = {dtypes[name] for name in found}
    dtype = stored_as.pop() if len(stored_as) == 1 else "float32"  # mixed: what holds them all
    bos_ids, eos_ids = (_special_ids(directory, f"{name}_token_id") for name in ("bos", "eos"))
    return Checkpoint(
        config,
        LazyTensors(readers),
        "Hugging Face",
        dtype,
        directory,
        bos_ids[0] if bos_ids else None,
        eos_ids,
    )


def _special_ids(directory: Path, key: str) -> tuple[int, ...]:
    """What a directory says of a special token: one id, a list of them, or nothing."""
    for name in ("generation_config.json", "config.json"):  # transformers asks the first first
        path = directory / name
        ids = read_json(path).get(key) if path.exists() else None
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(token_id) is int and 0 <= token_id < 2**31 for token_id in ids):
            raise CheckpointError(f"{path}: {key} is {ids!r:.80}, expected token ids")
        return tuple(ids)
    return ()


def _read(read: Callable[[str], Array], name: str, config: ModelConfig) -> Array:
    weight = read(hf_name(name))
    n_heads = n_rotated_heads(name, config)
    return to_interleaved(weight, n_heads) if n_heads else weight


def _open_shards(directory: Path) -> dict[str, SafetensorsFile]:
    single = directory / "model.safetensors"
    if single.exists():
        file = SafetensorsFile(single)
        return dict.fromkeys(file.tensors, file)
    index_path = directory / "model.safetensors.index.json"
    if not index_path.exists():
        raise CheckpointError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json"
        )
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path}: weight_map is missing")
    files: dict[str, SafetensorsFile] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index_path}: {file_name!r} is no name of a file beside it")
        if file_name not in files:
            if not (directory / file_name).is_file():
                raise CheckpointError(f"{directory}: the shard {file_name} is missing")
            files[file_name] = SafetensorsFile(directory / file_name)
        if name not in files[file_name].tensors:
            raise CheckpointError(f"{directory / file_name}: tensor {name} is missing")
    return {name: files[file_name] for name, file_name in weight_map.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return content


def read_config(path: Path) -> ModelConfig:
    """The sizes in a ``config.json``, as transformers 4 and 5 write it.

    Raises:
        CheckpointError: see `load_hf`.
    """
    hf = read_json(path)
    _refuse_variants(path, hf)

    def value(key: str, *default: Any) -> Any:
        if hf.get(key) is None and not default:
            raise CheckpointError(f"{path}: {key} is missing")
        return default[0] if hf.get(key) is None else hf[key]

    # The defaults are those of transformers' LlamaConfig.
    try:
        config = ModelConfig(
            dim=value("hidden_size"),
            hidden_dim=value("intermediate_size"),
            n_layers=value("num_hidden_layers"),
            n_heads=value("num_attention_heads"),
            n_kv_heads=value("num_key_value_heads", value("num_attention_heads")),
            vocab_size=value("vocab_size"),
            max_seq_len=value("max_position_embeddings", 2048),
            rope_theta=_rope_theta(path, hf),
            norm_eps=value("rms_norm_eps", 1e-6),
            tied_embeddings=value("tie_word_embeddings", False),
        )
    except ArgumentError as error:
        theirs = re.sub(r"\w+", lambda word: _CONFIG_NAMES.get(word[0], word[0]), str(error))
        raise CheckpointError(f"{path}: {theirs}") from None
    if value("head_dim", config.head_size) != config.head_size:
        raise CheckpointError(
            f"{path}: head_dim is {hf['head_dim']}, only hidden_size / num_attention_heads = "
            f"{config.head_size} is supported"
        )
    return config


def _refuse_variants(path: Path, hf: dict[str, Any]) -> None:
    """Name what makes this another model than the Llama that llama2.c knows."""
    architectures = hf.get("architectures") or [
        "LlamaForCausalLM" if hf.get("model_type") == "llama" else hf.get("model_type")
    ]
    if architectures != ["LlamaForCausalLM"]:
        raise CheckpointError(
            f"{path}: the architecture is {architectures}, only LlamaForCausalLM is supported"
        )
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(
            f"{path}: hidden_act is {hf['hidden_act']!r}, only 'silu' is supported"
        )
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise CheckpointError(f"{path}: {key} is set, models with biases are not supported")
    if hf.get("quantization_config"):
        raise CheckpointError(
            f"{path}: quantization_config is set, only unquantized weights are supported"
        )


def _rope_theta(path: Path, hf: dict[str, Any]) -> Any:
    """The base of RoPE: beside rope_scaling in transformers 4, in rope_parameters in 5."""
    theta = 10000.0 if hf.get("rope_theta") is None else hf["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        rope = hf.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(f"{path}: {key} is {rope!r}, expected an object")
        kind = rope.get("rope_type") or rope.get("type")
        if kind not in (None, "default"):
            raise CheckpointError(f"{path}: the rope scaling {kind!r} is not supported")
        # Without a type, anything but the plain settings is a scaling of some other spelling.
        if kind is None and (unknown := set(rope) - _PLAIN_ROPE):
            raise CheckpointError(
                f"{path}: {key} has {min(unknown)!r} and no rope_type, "
                "only {'rope_type': 'default'} is supported"
            )
        theta = theta if rope.get("rope_theta") is None else rope["rope_theta"]
        _refuse_partial_rotary(path, rope)
    _refuse_partial_rotary(path, hf)
    return theta


def _refuse_partial_rotary(path: Path, settings: dict[str, Any]) -> None:
    factor = settings.get("partial_rotary_factor")
    if factor not in (None, 1.0):
        raise CheckpointError(f"{path}: partial_rotary_factor {factor} is not supported")
