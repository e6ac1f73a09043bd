"""The sizes of a Llama model: everything about it that is not a weight."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from pyllama2c.errors import ArgumentError

DEFAULT_ROPE_THETA = 10000.0
DEFAULT_NORM_EPS = 1e-5
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama model, with llama2.c's names.

    Args:
        dim: width of the residual stream.
        hidden_dim: width of the SwiGLU feed-forward layer; any size.
        n_layers: number of transformer layers.
        n_heads: number of query heads; divides ``dim`` into heads of an even size.
        n_kv_heads: number of key and value heads; divides ``n_heads``
            (``n_heads`` of them: multi-head, 1: multi-query, between: grouped-query attention).
        vocab_size: number of tokens.
        max_seq_len: longest context, in tokens.
        rope_theta: base of the rotary position embedding's frequencies; at least 1.
        norm_eps: what RMSNorm adds to the mean square before the root.
        tied_embeddings: the classifier is the embedding table itself.

    Raises:
        ArgumentError: a field is of the wrong type, out of range, or does not fit another.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float = DEFAULT_ROPE_THETA
    norm_eps: float = DEFAULT_NORM_EPS
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                if type(value) is not int or not 1 <= value <= _INT32_MAX:
                    raise ArgumentError(
                        f"{field.name} is {value!r}, expected a whole number from 1 to 2^31 - 1"
                    )
            elif field.type == "float":
                # JSON also spells integers that no float holds.
                if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
                    raise ArgumentError(
                        f"{field.name} is {value!r}, expected a finite number above 0"
                    )
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not bool:
                raise ArgumentError(f"{field.name} is {value!r}, expected true or false")
        if self.rope_theta < 1:
            raise ArgumentError(f"rope_theta is {self.rope_theta}, expected a number from 1 on")
        if self.dim % self.n_heads:
            raise ArgumentError(
                f"n_heads is {self.n_heads}, expected a divisor of dim, which is {self.dim}"
            )
        if self.head_size % 2:
            raise ArgumentError(
                f"dim / n_heads is {self.head_size}, expected an even head size: "
                "rotary embedding turns pairs of elements"
            )
        if self.n_heads % self.n_kv_heads:
            raise ArgumentError(
                f"n_kv_heads is {self.n_kv_heads}, expected a divisor of n_heads, "
                f"which is {self.n_heads}"
            )

    @property
    def head_size(self) -> int:
        """Elements of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Elements of one token's key (or value) in one layer, all heads together."""
        return self.n_kv_heads * self.head_size

    @property
    def n_params(self) -> int:
        """Number of weights; a tied embedding table counts once."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_dim
        feed_forward = 3 * self.dim * self.hidden_dim
        layers = self.n_layers * (attention + feed_forward + 2 * self.dim)
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.dim
        return layers + tables + self.dim
