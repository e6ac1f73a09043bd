"""ModelConfig accepts what a Llama model can be and says what is wrong with anything else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError

SMALL: dict[str, Any] = {
    "dim": 48,
    "hidden_dim": 172,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 100,
    "max_seq_len": 32,
}


def test_derived_sizes() -> None:
    config = ModelConfig(**SMALL)
    assert (config.head_size, config.kv_dim) == (12, 24)
    assert (config.rope_theta, config.norm_eps, config.tied_embeddings) == (10000.0, 1e-5, True)


def test_n_params_of_the_reference_model() -> None:
    config = ModelConfig(768, 2268, 12, 12, 12, 3000, 768)
    assert config.n_params == (
        3000 * 768  # embeddings, also the classifier
        + 12 * (4 * 768 * 768 + 3 * 768 * 2268 + 2 * 768)  # attention, feed-forward, norms
        + 768  # final norm
    )
    untied = dataclasses.replace(config, tied_embeddings=False)
    assert untied.n_params - config.n_params == 3000 * 768


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", 2**31),
        ("dim", 48.0),
        ("dim", True),
        ("n_heads", 16),  # heads of 3
        ("n_heads", 5),
        ("n_kv_heads", 3),
        ("vocab_size", -100),
        ("n_layers", "2"),
        ("rope_theta", 0.0),
        ("rope_theta", 0.999),
        ("rope_theta", math.inf),
        pytest.param("rope_theta", 10**400, id="rope_theta-10^400"),  # JSON can spell it
        ("norm_eps", math.nan),
        ("norm_eps", None),
        ("tied_embeddings", 1),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=field):
        ModelConfig(**{**SMALL, field: value})


def test_a_whole_rope_theta_becomes_a_float() -> None:
    theta = ModelConfig(**SMALL, rope_theta=500000).rope_theta
    assert type(theta) is float
    assert theta == 500000.0
