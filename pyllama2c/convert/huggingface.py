"""Writing a model as the Hugging Face files that transformers loads without further words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllama2c.checkpoint import Checkpoint, cast, tensor_shapes
from pyllama2c.checkpoint.dtypes import Array
from pyllama2c.checkpoint.huggingface import hf_name, n_rotated_heads, to_half_split
from pyllama2c.checkpoint.safetensors_file import write_safetensors
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError


def write_hf(
    directory: Path, checkpoint: Checkpoint, dtype: str, special_ids: Mapping[str, Any]
) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors``.

    Args:
        directory: where; exists.
        checkpoint: what.
        dtype: ``float32``, ``float16`` or ``bfloat16``: how to store the weights.
        special_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``; those there are.

    Raises:
        ArgumentError: float16 cannot hold one of the weights.
    """
    config = checkpoint.config
    names = {hf_name(name): name for name in tensor_shapes(config)}
    shapes = {name: tensor_shapes(config)[ours] for name, ours in names.items()}

    def read(name: str) -> Array:
        ours = names[name]
        try:
            weight = cast(checkpoint.tensors[ours], dtype)
        except ArgumentError as error:
            raise ArgumentError(f"tensor {ours}: {error}") from None
        n_heads = n_rotated_heads(ours, config)
        return to_half_split(weight, n_heads) if n_heads else weight

    with (directory / "model.safetensors").open("wb") as file:
        # transformers wants to know for which framework the layout of the tensors is meant.
        write_safetensors(file, shapes, dtype, read, {"format": "pt"})
    write_json(directory / "config.json", config_json(config, dtype, special_ids))
    write_json(directory / "generation_config.json", generation_config_json(special_ids))


def config_json(config: ModelConfig, dtype: str, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``config.json`` for LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        # transformers 4 reads the first, transformers 5 the second.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        **{"bos_token_id": None, "eos_token_id": None, **special_ids},
    }


def generation_config_json(special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``generation_config.json``: BOS ends a text as EOS does.

    Models trained as llama2.c trains them have seen a BOS before each story and never an EOS.
    """
    ends = [special_ids[key] for key in ("eos_token_id", "bos_token_id") if key in special_ids]
    if ends and not isinstance(ends[0], list):
        return {**special_ids, "eos_token_id": ends}
    return dict(special_ids)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as readable JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
