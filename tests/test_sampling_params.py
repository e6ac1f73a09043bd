"""SamplingParams: frozen, checked, and clear about what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllama2c import ArgumentError, Model, SamplingParams
from pyllama2c.sampling import SamplingOptions

NAN, INF = math.nan, math.inf


def test_defaults_are_llama2cs() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p) == (1.0, 0.9)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (0, 0.0, 1.0)
    assert params.seed is None
    assert params.max_tokens is None
    assert params.stop == ()


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("temperature", 0, 0.0),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", Decimal("0.5"), 0.5),
        ("top_k", np.int64(40), 40),
        ("top_p", 0, 0.0),
        ("top_p", 1, 1.0),
        ("seed", 0, 0),
        ("seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("max_tokens", 0, 0),
        ("stop", "end", ("end",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", None, ()),
        ("stop_token_ids", np.array([3, 4]), (3, 4)),
        ("stop_token_ids", {5}, (5,)),
        ("logit_bias", {np.int32(3): np.float16(-1)}, {3: -1.0}),
        ("ignore_eos", np.bool_(True), True),
    ],
)
def test_values_that_will_do(name: str, value: Any, kept: object) -> None:
    params = SamplingParams(**{name: value})
    assert getattr(params, name) == kept
    assert type(getattr(params, name)).__module__ != "numpy"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("temperature", "top_p", "min_p", "repetition_penalty")
          for value in (NAN, INF, -INF, -0.1, True, "1", None, [1.0], 10**400)],
        *[(name, value) for name in ("presence_penalty", "frequency_penalty")
          for value in (NAN, INF, -101, True, "1", None)],
        *[(name, value) for name in ("top_k", "seed", "max_tokens")
          for value in (-1, 1.0, True, np.bool_(True), "1", NAN)],
        ("top_k", None),
        ("top_p", 1.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        ("seed", 2**64),
        ("max_tokens", 2**31),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", b"a"),
        ("stop", [1]),
        ("stop", 1),
        ("stop_token_ids", 1),
        ("stop_token_ids", "1"),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1.0]),
        ("logit_bias", [1]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {"1": 0.0}),
        ("logit_bias", {1: NAN}),
        ("logit_bias", {1: True}),
        ("ignore_eos", 1),
        ("ignore_eos", None),
    ],
)  # fmt: skip
def test_values_that_will_not_are_named(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}.* is .*, expected ") as error:
        SamplingParams(**{name: value})
    assert len(str(error.value)) < 200


def test_options_are_its_fields() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(SamplingParams)}
    options = {name: kind.__forward_arg__ for name, kind in SamplingOptions.__annotations__.items()}
    assert options == fields


def test_frozen() -> None:
    params = SamplingParams(logit_bias={1: 2.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 0.5  # type: ignore[misc]
    bias: Any = params.logit_bias
    for change in (
        lambda: bias.update({1: NAN}),
        lambda: bias.__setitem__(1, NAN),
        lambda: bias.pop(1),
        bias.clear,
        lambda: bias.setdefault(2, 1.0),
        lambda: bias.__ior__({2: 1.0}),
    ):
        with pytest.raises(TypeError, match="replace"):
            change()
    assert params.logit_bias == {1: 2.0}


def test_the_callers_mapping_is_copied() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = NAN
    assert params.logit_bias == {1: 2.0}


def test_equal_hashed_pickled_copied() -> None:
    params = SamplingParams(seed=3, stop=["x"], logit_bias={1: 2.0, 0: -1.0})
    twin = SamplingParams(seed=3, stop=("x",), logit_bias={0: -1.0, 1: 2.0})
    assert params == twin
    assert hash(params) == hash(twin)
    for other in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params), copy.copy(params)):
        assert other == params
    assert SamplingParams(**dataclasses.asdict(params)) == params


def test_replace_checks_too() -> None:
    params = SamplingParams(seed=3)
    assert params.replace(top_k=5) == SamplingParams(seed=3, top_k=5)
    assert params.top_k == 0
    with pytest.raises(ArgumentError, match="top_k"):
        params.replace(top_k=-1)
    with pytest.raises(TypeError, match="topk"):
        params.replace(topk=1)


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-30, 1e-38, 1e-40, 1e-45, 1e-300])
def test_the_smallest_temperatures_are_greedy(speaker: Path, temperature: float) -> None:
    with Model(speaker) as model:
        greedy = model.generate("Lily", temperature=0, ignore_eos=True)
        text = model.generate("Lily", temperature=temperature, seed=1, ignore_eos=True)
    assert text.token_ids == greedy.token_ids
