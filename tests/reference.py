"""The Llama forward pass in float64 NumPy, the oracle of this project.

One sequence, no cache, every position at once. Nothing here is fast and everything is plain.
Papers: Llama 2 (Touvron et al. 2023), RMSNorm (Zhang & Sennrich 2019), rotary embedding (Su et al.
2021), SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c.checkpoint import to_float32
from pyllama2c.config import ModelConfig

Floats = NDArray[np.float64]


def forward(
    config: ModelConfig, tensors: Mapping[str, NDArray[Any]], token_ids: Sequence[int]
) -> Floats:
    """Logits (len, vocab_size) after each of the tokens."""

    def weight(name: str) -> Floats:
        return to_float32(tensors[f"{name}.weight"]).astype(np.float64)

    embeddings = weight("tok_embeddings")
    x = embeddings[np.asarray(token_ids)]  # (len, dim)
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}"
        normed = rms_norm(x, weight(f"{prefix}.attention_norm"), config.norm_eps)
        mixed = attention(
            config,
            normed @ weight(f"{prefix}.attention.wq").T,
            normed @ weight(f"{prefix}.attention.wk").T,
            normed @ weight(f"{prefix}.attention.wv").T,
        )
        x = x + mixed @ weight(f"{prefix}.attention.wo").T

        normed = rms_norm(x, weight(f"{prefix}.ffn_norm"), config.norm_eps)
        gate = normed @ weight(f"{prefix}.feed_forward.w1").T  # (len, hidden_dim)
        up = normed @ weight(f"{prefix}.feed_forward.w3").T  # (len, hidden_dim)
        x = x + (silu(gate) * up) @ weight(f"{prefix}.feed_forward.w2").T

    x = rms_norm(x, weight("norm"), config.norm_eps)
    classifier = embeddings if config.tied_embeddings else weight("output")
    return x @ classifier.T


def rms_norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """Scale each row (len, dim) to a root mean square of one, then each column by its gain."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def silu(x: Floats) -> Floats:
    """Each element times its sigmoid."""
    return x / (1.0 + np.exp(-x))


def attention(config: ModelConfig, q: Floats, k: Floats, v: Floats) -> Floats:
    """Causal self-attention; q (len, dim), k and v (len, kv_dim), result (len, dim)."""
    length = len(q)
    q = rotate(q.reshape(length, config.n_heads, config.head_size), config.rope_theta)
    k = rotate(k.reshape(length, config.n_kv_heads, config.head_size), config.rope_theta)
    v = v.reshape(length, config.n_kv_heads, config.head_size)
    # Each key and value head serves n_heads / n_kv_heads neighbouring query heads.
    sharers = config.n_heads // config.n_kv_heads
    k, v = np.repeat(k, sharers, axis=1), np.repeat(v, sharers, axis=1)

    scores = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(config.head_size)
    scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf  # no look ahead
    return np.einsum("hqk,khe->qhe", softmax(scores), v).reshape(length, config.dim)


def rotate(x: Floats, theta: float) -> Floats:
    """Rotary embedding of (len, heads, head_size): turn each pair of neighbours by its position."""
    length, _, head_size = x.shape
    frequencies = theta ** (-np.arange(0, head_size, 2) / head_size)  # one for each pair
    angles = np.arange(length)[:, None, None] * frequencies  # (len, 1, head_size / 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return turned


def softmax(x: Floats) -> Floats:
    """Along the last axis."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
