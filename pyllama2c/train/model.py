"""The Llama model in PyTorch, for training. It reads top to bottom like the papers.

RMSNorm (Zhang and Sennrich 2019), rotary position embedding on interleaved pairs (Su et al. 2021),
SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023), put together as in LLaMA
(Touvron et al. 2023). Parameters have the names and layouts of Meta's checkpoints and llama2.c.

Shapes: B sequences of T tokens; D = dim, H = n_heads, K = n_kv_heads, S = head_size,
V = vocab_size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyllama2c.config import ModelConfig


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of one, then by a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale * self.weight).type_as(x)


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every angle: (max_seq_len, 1, S / 2) each."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
    positions = torch.arange(config.max_seq_len, dtype=torch.float64)
    angles = torch.outer(positions, config.rope_theta**-exponents)[:, None, :]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (2i, 2i + 1) of ``x`` (B, T, heads, S) by its position's angle."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x)


class Attention(nn.Module):
    """Causal self-attention; several query heads share a key and value head."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.grouped = config.n_kv_heads != config.n_heads
        self.dropout = dropout
        kv_dim = config.n_kv_heads * config.head_size
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.wq(x).unflatten(-1, (-1, self.head_size))  # (B, T, H, S)
        k = self.wk(x).unflatten(-1, (-1, self.head_size))  # (B, T, K, S)
        v = self.wv(x).unflatten(-1, (-1, self.head_size))  # (B, T, K, S)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.grouped,
        )  # (B, H, T, S)
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: one projection gates the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # gate
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)  # down
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # up

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Attention and feed-forward, each on a normalised copy and added to the stream."""

    def __init__(self, config: ModelConfig, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, attention_dropout)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class Llama(nn.Module):
    """The whole model.

    Args:
        config: its sizes.
        dropout: share of activations set to zero in training: of the embedding and of what each
            half of a layer adds.
        attention_dropout: the same of the attention weights; PyTorch's fast attention on the CPU
            has none, so that it costs much time there.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self, config: ModelConfig, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(config, dropout, attention_dropout) for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied_embeddings:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        cos, sin = rope_table(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw normal weights, smaller where they add to the residual stream (GPT-2's scheme)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=residual_std if into_stream else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map tokens (B, T) to the logits of each next token (B, T, V), or to the loss.

        With ``targets`` (B, T) it is the mean cross-entropy in nats; those below 0 do not count.
        """
        length = tokens.shape[1]
        cos, sin = self.rope_cos[:length], self.rope_sin[:length]
        x = self.dropout(self.tok_embeddings(tokens))  # (B, T, D)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.norm(x)
        tied = self.config.tied_embeddings
        logits = F.linear(x, self.tok_embeddings.weight if tied else self.output.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1)

    def n_parameters(self) -> int:
        """Count the parameters, a shared classifier once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Count the operations of forward and backward for one token of a full-length window.

        Two for each multiply-add, and the backward pass twice the forward; attention over the
        whole square, as is the custom (Chowdhery et al. 2022, appendix B).
        """
        embedding = 0 if self.config.tied_embeddings else self.tok_embeddings.weight.numel()
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2) - embedding
        attention = 2 * self.config.n_layers * self.config.dim * self.config.max_seq_len
        return 6 * (matrices + attention)
