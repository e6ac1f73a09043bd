"""Training as one writes it down first: the baseline of train.py.

The model and the loop in the manner of llama2.c's training script, in plain PyTorch: normalise,
rotate, attend with repeated key and value heads, gate; cross-entropy over every token; AdamW with
one group for matrices and one for vectors; clip; step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyllama2c.config import ModelConfig
from pyllama2c.train.config import TrainConfig


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        length = x.float().pow(2).mean(-1, keepdim=True)
        return (x.float() * torch.rsqrt(length + self.eps)).type_as(x) * self.weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of (B, T, heads, S)."""
    a, b = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos.view(1, x.shape[1], 1, -1), sin.view(1, x.shape[1], 1, -1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(3).type_as(x)


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.config = config
        kv = config.n_kv_heads * config.head_size
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, kv, bias=False)
        self.v = nn.Linear(config.dim, kv, bias=False)
        self.o = nn.Linear(config.dim, config.dim, bias=False)
        self.gate = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        size = self.config.head_size
        y = self.norm1(x)
        q = rotated(self.q(y).view(batch, length, -1, size), cos, sin)
        k = rotated(self.k(y).view(batch, length, -1, size), cos, sin)
        v = self.v(y).view(batch, length, -1, size)
        repeats = self.config.n_heads // self.config.n_kv_heads
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.o(y.transpose(1, 2).contiguous().view(batch, length, -1))
        x = x + self.dropout(y)
        y = self.norm2(x)
        return x + self.dropout(self.down(F.silu(self.gate(y)) * self.up(y)))


class PlainLlama(nn.Module):
    """The whole model, tied embeddings."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.norm = Norm(config)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.output.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        steps = torch.arange(0, config.head_size, 2).float() / config.head_size
        angles = torch.outer(torch.arange(config.max_seq_len), config.rope_theta**-steps)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = self.output(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class PlainLoop:
    """Everything around it.

    Args:
        config: the model's sizes.
        settings: batch, learning rate and the like; one device, float32.
        stream: the tokens, (N,).
        compiled: whether `torch.compile` is used.
    """

    def __init__(
        self, config: ModelConfig, settings: TrainConfig, stream: Any, compiled: bool
    ) -> None:
        self.settings, self.stream, self.length = settings, stream, config.max_seq_len
        self.model = PlainLlama(config, settings.dropout)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
        self.forward: Any = torch.compile(self.model) if compiled else self.model

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw places of the stream at random."""
        places = torch.randint(len(self.stream) - self.length - 1, (self.settings.batch_size,))
        rows = [
            torch.from_numpy(self.stream[p : p + self.length + 1].astype("int64"))
            for p in places.tolist()
        ]
        both = torch.stack(rows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def take_step(self) -> Tensor:
        """Update the weights once; return the loss."""
        for _ in range(self.settings.grad_accumulation):
            tokens, targets = self.batch()
            loss = self.forward(tokens, targets) / self.settings.grad_accumulation
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        result: Tensor = loss.detach()
        return result
