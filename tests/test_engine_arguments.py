"""What an `Engine` refuses: the error names the argument, its value, and what would work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_helpers as helpers
import numpy as np
import pytest

from pyllama2c import ArgumentError, Engine, Model

_BLOCK_BYTES = 16 * 2 * 2 * 32 * 4  # 16 tokens, 2 layers, keys and values, 32 floats


@pytest.fixture(scope="module")
def model(speaker: Path) -> Iterator[Model]:
    with Model(speaker) as model:
        yield model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 1.5}, "priority is 1.5"),
        ({"priority": 2**31}, "priority is 2147483648"),
        ({"deadline_ms": -1}, "deadline_ms is -1"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"deadline_ms": 10**400}, "deadline_ms is 1000"),
        ({"on_deadline": 5}, "on_deadline is 5"),
        ({"overflow": "wrap"}, "overflow is 'wrap'"),
        ({"overflow": np.array(["stop", "slide"])}, "overflow is array"),
        ({"temperature": -1}, "temperature is -1"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"deadline": 5}, "unknown option 'deadline': did you mean deadline_ms"),
        ({"priority": 10**5000}, "priority is <int>"),
        ({"max_tokens": 10**5000}, "max_tokens is <int>"),
        ({"deadline_ms": 10**5000}, "deadline_ms is <int>"),
        ({"stop_token_ids": [420]}, "stop_token_ids names token 420"),
    ],
)
def test_bad_arguments_are_named(model: Model, options: dict[str, object], message: str) -> None:
    engine = Engine(model)
    with pytest.raises(ArgumentError, match=message):
        engine.submit("Once", **options)  # type: ignore[arg-type]
    helpers.expect_nothing_held(engine)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1, "a"], r"is \[1, 'a'\]"),
        ("\ud800", "has a lone surrogate"),
        (np.array(3), r"is array\(3\)"),
        ([[1], [2]], "is a list of prompts"),
        ({1, 2}, r"is \{1, 2\}"),
        ([True], r"holds True"),
        ([5, 420], "holds token 420, expected 0 to 419"),
    ],
)
def test_bad_prompts_are_named_as_the_caller_did(model: Model, bad: Any, message: str) -> None:
    engine = Engine(model)
    prefix, session = engine.prefix("Once"), engine.session()
    calls: dict[str, Callable[[], object]] = {
        "prompt": lambda: engine.submit(bad),
        "text": lambda: engine.prefix(bad),
        "text ": lambda: prefix.extend(bad),
        " text": lambda: session.send(bad),
        "prefix": lambda: engine.session(prefix=bad),
    }
    for name, call in calls.items():
        with pytest.raises(ArgumentError, match=f"^{name.strip()} {message}"):
            call()
    helpers.expect_nothing_held(engine)


def test_bad_engines_and_prompts_are_refused(model: Model) -> None:
    with pytest.raises(ArgumentError, match="model is 'x'"):
        Engine("x")  # type: ignore[arg-type]
    for options in (
        {"max_sequences": 0},
        {"prefill_chunk": 0},
        {"max_waiting": -1},
        {"kv_memory": "x"},
        {"kv_dtype": []},
        {"preallocate": "no"},
    ):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            Engine(model, **options)  # type: ignore[arg-type]
    engine = Engine(model, kv_memory="0.001GB")
    assert engine.stats().blocks == 1_000_000 // _BLOCK_BYTES
    with pytest.raises(ArgumentError, match="text is 5"):
        engine.prefix(5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="prefix is 5"):
        engine.session(prefix=5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"params is \{\}"):
        engine.session().send("Once", {})  # type: ignore[arg-type]
    for prompt in (["a", "b"], 5, [1, 420], []):
        with pytest.raises(ArgumentError):
            engine.submit(prompt)  # type: ignore[arg-type]
    for budget in (-1, float("nan"), "4"):
        with pytest.raises(ArgumentError, match="budget_ms"):
            engine.step(budget)  # type: ignore[arg-type]


def test_memory_that_cannot_be_had_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model, kv_memory=2**62):
        pass  # as many tokens as anybody needs, taken when they are used
    monkeypatch.setattr("pyllama2c.engine.physical_memory", lambda: 1000)
    with pytest.raises(ArgumentError, match=r"^kv_memory is '1MiB', .* machine's 1000 with preal"):
        Engine(model, kv_memory="1MiB", preallocate=True)
    code = (
        "import resource; from pyllama2c import CapacityError, Engine, Model\n"
        f"model = Model({str(model.path)!r}, n_threads=1)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: Engine(model, kv_memory='64GiB')\n"
        "except CapacityError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ask for less kv_memory" in output
