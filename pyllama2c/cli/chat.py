"""``pyllama2c run -m chat``: a conversation in Llama 2's format."""

from __future__ import annotations

import contextlib
import io
import sys
from itertools import count
from typing import TYPE_CHECKING

from pyllama2c.cli.common import note, show, tokenizer_of, with_seed
from pyllama2c.sampling import MAX_SEED, SamplingParams

if TYPE_CHECKING:
    from pyllama2c.model import Model
    from pyllama2c.outputs import Completion


def chat(
    model: Model, params: SamplingParams, steps: int, system: str = "", first_prompt: str = ""
) -> None:
    r"""Chat on the terminal until the end of input, or until the context is full.

    The format is that of Llama 2 and of llama2.c: each turn is
    ``<s>[INST] user [/INST] answer</s>``, and the first user text has
    ``<<SYS>>\nsystem\n<</SYS>>\n\n`` before it if there is a system prompt.

    `steps` are the positions that the whole chat may take, 0 the full context. Every turn
    resubmits the history; the engine finds its keys and values in the cache. Turn k (from 0)
    draws with the seed ``params.seed + k``.
    """
    tokenizer, context = tokenizer_of(model), model.config.max_seq_len
    steps = min(steps or context, context)
    params = with_seed(params)
    _prepare_stdin()
    history: list[int] = []
    for turn in count():
        user = first_prompt if turn == 0 and first_prompt else _ask("User: ")
        if user is None:
            return
        ids = history + tokenizer.encode(_render(user, system if turn == 0 else ""))
        if len(ids) > steps:
            note(f"this would take {len(ids)} of {steps} positions: the context is full")
            return
        seed = ((params.seed or 0) + turn) & MAX_SEED
        answer = _answer(model, ids, params.replace(seed=seed, max_tokens=steps + 1 - len(ids)))
        if answer.finish_reason == "length":
            note(f"all {steps} positions are taken: the context is full")
            return
        history = [*ids, *answer.token_ids]
        if tokenizer.eos_id >= 0:
            history.append(tokenizer.eos_id)


def _answer(model: Model, ids: list[int], params: SamplingParams) -> Completion:
    """Show the answer while it is being written."""
    show("Assistant: ")
    answer, at_start = None, True
    try:
        for chunk in model.stream(ids, params):
            # The first word begins with a space, as every word does; the label has one already.
            show(chunk.text.removeprefix(" ") if at_start else chunk.text)
            at_start = at_start and not chunk.text
            answer = chunk.completion
    finally:
        show("\n")
    assert answer is not None  # the last chunk brings it
    return answer


def _render(user: str, system: str) -> str:
    if system:
        return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"
    return f"[INST] {user} [/INST]"


def _prepare_stdin() -> None:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if sys.stdin is not None and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and a history


def _ask(label: str) -> str | None:
    """A line from stdin that is not empty, or None at the end of input."""
    while sys.stdin is not None:  # it is None if whoever started us has closed it
        try:
            line = _read_line(label).strip()
        except EOFError:
            show("\n")
            return None
        if line:
            return line
    return None


def _read_line(label: str) -> str:
    if sys.stdin.isatty():
        return input(label)
    show(label)  # input() would want stdout and stderr to be open
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
