"""The stories of llama2.c's ``run``, byte for byte, through our command line.

PYLLAMA2C_FORCE_ISA chooses the instruction set that they are told with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N_CASES = 9


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", range(N_CASES))
def test_same_story(cli: Callable[..., Any], shared: Path, case: int, threads: int) -> None:
    cases = json.loads((shared / "oracle" / "generate.json").read_text(encoding="utf-8"))
    assert len(cases) == N_CASES
    oracle = cases[case]
    result = cli(
        "run", shared / "checkpoints" / oracle["checkpoint"],
        "-z", shared / "tokenizers" / oracle["tokenizer"],
        "-t", oracle["temperature"],
        "-p", oracle["top_p"],
        "-s", oracle["seed"],
        "-n", oracle["steps"],
        "-i", oracle["prompt"],
        "--threads", threads,
    )  # fmt: skip
    assert result.stdout == oracle["stdout"]
    assert result.status == 0
