"""The oracle itself: against stored float64 logits of real models, and against what must hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from models import CONFIGS, random_tensors
from reference import forward

from pyllama2c.checkpoint import open_checkpoint


@pytest.mark.parametrize(
    ("file", "oracle", "tolerance"),
    [
        ("stories260K.bin", "logits_stories260K.npz", 1e-12),
        ("stories260K_v1.bin", "logits_stories260K.npz", 1e-12),
        # Dequantized to float32 here, in float64 there.
        ("stories260K_q80.bin", "logits_stories260K_q80.npz", 1e-5),
        ("stories260K_q80_g4.bin", "logits_stories260K_q80_g4.npz", 1e-5),
    ],
)
def test_stored_logits(shared: Path, file: str, oracle: str, tolerance: float) -> None:
    checkpoint = open_checkpoint(shared / "checkpoints" / file)
    with np.load(shared / "oracle" / oracle) as stored:
        logits = forward(checkpoint.config, checkpoint.tensors, stored["token_ids"])
        assert np.abs(logits - stored["logits"]).max() < tolerance


def test_a_token_does_not_see_those_after_it() -> None:
    config = CONFIGS["grouped-query"]
    tensors = random_tensors(config)
    longer = forward(config, tensors, [5, 7, 9, 11, 13])
    np.testing.assert_allclose(forward(config, tensors, [5, 7, 9]), longer[:3], atol=1e-12)
    assert not np.allclose(longer[4], forward(config, tensors, [5, 7, 11, 9, 13])[4])


def test_grouped_query_equals_multi_head_with_repeated_heads() -> None:
    config = CONFIGS["grouped-query"]
    tensors = random_tensors(config)
    repeated = dict(tensors)
    for name, weight in tensors.items():
        if name.endswith(("wk.weight", "wv.weight")):
            heads = weight.reshape(config.n_kv_heads, config.head_size, config.dim)
            sharers = config.n_heads // config.n_kv_heads
            repeated[name] = heads.repeat(sharers, axis=0).reshape(config.dim, config.dim)
    multi_head = dataclasses.replace(config, n_kv_heads=config.n_heads)
    ids = [1, 2, 3, 4, 5]
    np.testing.assert_allclose(
        forward(config, tensors, ids), forward(multi_head, repeated, ids), atol=1e-12
    )
