"""``pyllama2c run -m chat``: the format, the turns, and every way to end."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllama2c import Chunk, Model, _core
from pyllama2c.generation import Generation

Cli = Callable[..., Any]


class Turn:
    """What a turn submitted and how it ended."""

    def __init__(self, ids: list[int], chunks: list[Chunk]) -> None:
        self.ids, self.chunks = ids, chunks


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[Turn]:
    """The turns of a chat, each of which ends after five tokens as if EOS had come."""
    seen: list[Turn] = []
    stream = Model.stream

    def short_stream(self: Model, ids: list[int], params: Any) -> Iterator[Chunk]:
        whole = self.generate(ids, params.replace(max_tokens=5, ignore_eos=True))
        params = params.replace(stop_token_ids=[whole.token_ids[-1]])
        turn = Turn(list(ids), [])
        seen.append(turn)
        for chunk in stream(self, ids, params):
            turn.chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(Model, "stream", short_stream)
    return seen


def test_the_format_of_llama_2(cli: Cli, speaker: Path, turns: list[Turn]) -> None:
    result = cli("run", speaker, "-m", "chat", "-s", 1, stdin="hi\n\n  \nyes\n")
    assert result.status == 0
    assert result.stderr == ""
    with Model(speaker) as model:
        tokenizer = model.tokenizer
        assert tokenizer is not None
        first = tokenizer.encode("[INST] hi [/INST]")
        second = tokenizer.encode("[INST] yes [/INST]")
    assert len(turns) == 2
    assert turns[0].ids == first
    answer = [i for chunk in turns[0].chunks for i in chunk.token_ids]
    assert turns[1].ids == [*first, *answer, tokenizer.eos_id, *second]
    shown = ["".join(map(str, turn.chunks)).removeprefix(" ") for turn in turns]
    assert result.stdout == (
        f"User: Assistant: {shown[0]}\nUser: User: User: Assistant: {shown[1]}\nUser: \n"
    )


def test_system_prompt_and_first_prompt(cli: Cli, speaker: Path, turns: list[Turn]) -> None:
    result = cli("run", speaker, "-m", "chat", "-y", "Be kind.", "-i", "hi", "-s", 1, stdin="yes\n")
    with Model(speaker) as model:
        assert model.tokenizer is not None
        first = model.tokenizer.encode("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nhi [/INST]")
        second = model.tokenizer.encode("[INST] yes [/INST]")
    assert turns[0].ids == first
    assert turns[1].ids[-len(second) :] == second
    assert result.stdout.startswith("Assistant: ")


def test_later_turns_find_the_earlier_ones_in_the_cache(
    cli: Cli, speaker: Path, turns: list[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[int] = []
    push = Generation.push

    def spy(self: Generation, progress: _core.Progress) -> Chunk:
        cached.append(progress.cached_tokens)
        return push(self, progress)

    monkeypatch.setattr(Generation, "push", spy)
    cli("run", speaker, "-m", "chat", "-i", "once upon a time there was", stdin="yes\n")
    assert len(turns[0].ids) > 16  # more than a block of the cache
    assert cached[-1] >= len(turns[0].ids) - 16


def test_a_full_context_ends_the_chat(cli: Cli, speaker: Path, turns: list[Turn]) -> None:
    result = cli("run", speaker, "-m", "chat", "-s", 1, stdin="hi\n" * 50)
    assert result.status == 0
    assert "the context is full" in result.stderr
    assert 1 < len(turns) < 10
    too_long = cli("run", speaker, "-m", "chat", "-s", 1, stdin="🐰" * 50 + "\n")
    assert too_long.status == 0
    assert "the context is full" in too_long.stderr


def test_steps_bound_the_chat(cli: Cli, speaker: Path) -> None:
    with Model(speaker) as model:
        assert model.tokenizer is not None
        n_prompt = len(model.tokenizer.encode("[INST] hi [/INST]"))
    result = cli("run", speaker, "-m", "chat", "-s", 1, "-n", n_prompt - 1, stdin="hi\n")
    assert f"{n_prompt} of {n_prompt - 1} positions" in result.stderr
    assert "Assistant" not in result.stdout
    assert result.status == 0


def test_no_input_at_all(cli: Cli, speaker: Path) -> None:
    result = cli("run", speaker, "-m", "chat", "-s", 1)
    assert (result.status, result.stdout, result.stderr) == (0, "User: \n", "")


def test_bytes_that_are_no_utf8(speaker: Path) -> None:
    command = [sys.executable, "-m", "pyllama2c", "run", str(speaker), "-m", "chat", "-s", "1"]
    result = subprocess.run(command, input=b"\xff\xfe hi\n", capture_output=True, check=False)
    assert result.returncode == 0
    assert b"Traceback" not in result.stderr


def _read(terminal: int, until: bytes) -> bytes:
    seen = b""
    while not seen.endswith(until):
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"nothing but {seen!r} for a minute"
        try:
            seen += os.read(terminal, 1)
        except OSError:  # the other side is closed
            break
    return seen


@pytest.mark.parametrize(("key", "status"), [(b"\x04", 0), (signal.SIGINT, 130)])
def test_on_a_terminal(speaker: Path, key: bytes | signal.Signals, status: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pyllama2c", "run", str(speaker), "-m", "chat", "-s", "1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    _read(ours, b"User: ")
    os.write(ours, b"\n")
    _read(ours, b"User: ")
    time.sleep(0.2)  # until it waits for us
    if isinstance(key, bytes):
        os.write(ours, key)
    else:
        process.send_signal(key)
    rest = _read(ours, b"never")
    assert process.wait(timeout=10) == status
    assert b"Traceback" not in rest
    os.close(ours)


def test_a_closed_stdin_is_the_end_of_input(speaker: Path) -> None:
    command = f"exec {sys.executable} -m pyllama2c run {speaker} -m chat -s 1 <&-"
    result = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("closed", "status", "message"), [(">&-", 2, b"stdout is closed"), ("2>&-", 0, b"")]
)
def test_closed_outputs(speaker: Path, closed: str, status: int, message: bytes) -> None:
    command = f"exec {sys.executable} -m pyllama2c run {speaker} -m chat -s 1 {closed}"
    result = subprocess.run(command, shell=True, capture_output=True, check=False, input=b"hi\n")
    assert result.returncode == status
    assert message in result.stderr
    assert b"unexpected" not in result.stderr
