"""``pyllama2c run``: what goes to stdout, what to stderr, and how steps are counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyllama2c import Model

Cli = Callable[..., Any]


def test_story_is_the_models_text(cli: Cli, speaker: Path) -> None:
    result = cli("run", speaker, "-s", 7, "-n", 40, "-i", "Once 🐰")
    with Model(speaker) as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("Once 🐰")
        completion = model.generate(ids, seed=7, max_tokens=40 - (len(ids) - 1))
    assert result.stdout == "Once 🐰" + completion.text + "\n"
    assert result.status == 0
    assert result.stderr.startswith("achieved tok/s: ")
    assert len(result.stderr.splitlines()) == 1


def test_options_reach_the_sampler(cli: Cli, speaker: Path) -> None:
    flags = {
        "-t": 0.7, "-p": 0.8, "--top-k": 20, "--min-p": 0.01, "--repetition-penalty": 1.2, "-s": 3
    }  # fmt: skip
    result = cli("run", speaker, "-n", 30, *[x for flag in flags.items() for x in flag])
    options = [name.lstrip("-").replace("-", "_") for name in flags]
    names = {"t": "temperature", "p": "top_p", "s": "seed"}
    params = dict(zip([names.get(o, o) for o in options], flags.values(), strict=True))
    with Model(speaker) as model:
        assert result.stdout == model.generate("", max_tokens=30, **params).text + "\n"


def test_dtypes(cli: Cli, speaker: Path) -> None:
    result = cli("run", speaker, "-s", 7, "-n", 40, "--dtype", "int4", "--kv-dtype", "int8")
    with Model(speaker, dtype="int4", kv_dtype="int8") as model:
        assert result.stdout == model.generate("", seed=7, max_tokens=40).text + "\n"


def test_long_names(cli: Cli, speaker: Path) -> None:
    short = cli(
        "run", speaker, "-t", 0.5, "-p", 0.5, "-s", 1, "-n", 20, "-i", "Lily", "-m", "generate"
    )
    long = cli(
        "run", speaker, "--temperature", 0.5, "--top-p", 0.5, "--seed", 1, "--steps", 20,
        "--prompt", "Lily", "--mode", "generate", "--threads", 1,
        "--tokenizer", speaker.parent / "tokenizer.model",
    )  # fmt: skip
    assert short.stdout == long.stdout


def test_a_random_seed_is_told_and_repeats_the_story(cli: Cli, speaker: Path) -> None:
    first, second = (cli("run", speaker, "-n", 60) for _ in range(2))
    assert first.stdout != second.stdout
    label, seed = first.stderr.splitlines()[0].split()
    assert label == "seed:"
    again = cli("run", speaker, "-n", 60, "-s", seed)
    assert again.stdout == first.stdout
    assert "seed" not in again.stderr
    assert "seed" not in cli("run", speaker, "-n", 60, "-t", 0).stderr


def test_seed_zero_is_a_seed(cli: Cli, speaker: Path) -> None:
    first, second = (cli("run", speaker, "-n", 60, "-s", 0) for _ in range(2))
    assert first.stdout == second.stdout != "\n"


def test_steps_count_the_prompt(cli: Cli, speaker: Path) -> None:
    with Model(speaker) as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("the little dog")
        texts = [model.tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
    for steps in range(1, len(ids)):  # as far as the steps go, as llama2.c shows it
        result = cli("run", speaker, "-n", steps, "-i", "the little dog", "-t", 0)
        assert result.stdout == texts[steps] + "\n"
        assert result.status == 0
        assert "nothing was generated" in result.stderr
    result = cli("run", speaker, "-n", len(ids), "-i", "the little dog", "-t", 0)
    assert result.stdout.startswith("the little dog")
    assert len(result.stdout) > len("the little dog\n")


def test_zero_steps_and_too_many_fill_the_context(cli: Cli, speaker: Path) -> None:
    results = [cli("run", speaker, "-n", n, "-t", 0).stdout for n in (0, 96, 1000)]
    assert results[0] == results[1] == results[2]


def test_a_prompt_longer_than_the_context(cli: Cli, speaker: Path) -> None:
    result = cli("run", speaker, "-i", "🐰" * 30)
    assert result.status == 2
    assert result.stdout == ""
    assert "the context holds 96" in result.stderr


def test_output_is_utf8_whatever_stdout_is_set_to(speaker: Path) -> None:
    command = [sys.executable, "-m", "pyllama2c", "run", str(speaker), "-s", "1", "-i", "小兔子🐰"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert result.stdout.decode().startswith("小兔子🐰"), result.stderr


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pyllama2c", *[str(argument) for argument in arguments]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_text_is_streamed_and_ctrl_c_stops_it(talkative: Path) -> None:
    process = _start("run", talkative, "-t", 0, "-n", 0, "-i", "Lily")
    assert process.stdout is not None
    assert process.stdout.read(12)[:4] == b"Lily"  # while the story goes on
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    stdout, stderr = process.communicate(timeout=10)
    assert time.monotonic() - start < 5
    assert process.returncode == 130
    assert stdout.endswith(b"\n")
    assert stderr.strip() == b"interrupted"


@pytest.mark.parametrize(
    ("redirection", "message"), [(">&-", "stdout is closed"), (">/dev/full", "No space left")]
)
def test_nowhere_to_write_to(speaker: Path, redirection: str, message: str) -> None:
    command = f'"$1" -m pyllama2c run "$2" -t 0 -n 5 {redirection}'
    arguments = ["sh", "-c", command, "sh", sys.executable, str(speaker)]
    # What is buffered is written once more at the interpreter's end, unless nothing is.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(arguments, capture_output=True, check=False, text=True, env=environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error(talkative: Path) -> None:
    process = _start("run", talkative, "-t", 0, "-n", 0)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=10) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
