"""Writing a llama2.c checkpoint as llama.cpp's GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.checkpoint import read_checkpoint

BLOCK = 32
"""Weights that share a scale in llama.cpp's block formats: rows must be a multiple of it."""

TENSORS: dict[str, str] = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
"""llama2.c's names of a layer's tensors, and GGUF's."""


def write_gguf(path: Path, checkpoint: Path, format_name: str) -> None:
    """Write a llama2.c v0 checkpoint as GGUF, without a vocabulary.

    The hidden layer is padded with zeros to whole blocks, which changes no result: without that
    llama.cpp keeps a down projection whose rows are no whole blocks in 16 bits.
    """
    import gguf

    config, tensors = read_checkpoint(checkpoint)
    hidden = -(-config.hidden_dim // BLOCK) * BLOCK
    quantization = gguf.GGMLQuantizationType[format_name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.dim // config.n_heads)
    writer.add_vocab_size(config.vocab_size)
    extent = "ALL" if format_name == "F32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{extent}_{format_name}"])
    writer.add_tokenizer_model("none")

    def add(name: str, weight: npt.NDArray[np.float32]) -> None:
        kind = quantization if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd.weight", tensors["token_embedding_table"])
    add("output_norm.weight", tensors["rms_final"])
    for layer in range(config.n_layers):
        for ours, theirs in TENSORS.items():
            weight = tensors[ours][layer]
            if ours in ("w1", "w3"):
                weight = np.pad(weight, ((0, hidden - config.hidden_dim), (0, 0)))
            elif ours == "w2":
                weight = np.pad(weight, ((0, 0), (0, hidden - config.hidden_dim)))
            add(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
