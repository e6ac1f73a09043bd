"""``pyllama2c run``: tell a story as llama2.c's ``run`` does, with its flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllama2c.cli.common import (
    dtype_option,
    kv_dtype_option,
    model_argument,
    note,
    open_model,
    show,
    threads_option,
    tokenizer_of,
    tokenizer_option,
    with_seed,
)
from pyllama2c.errors import CapacityError
from pyllama2c.sampling import SamplingParams

if TYPE_CHECKING:
    from pyllama2c.model import DType, KvDType, Model

DEFAULT_STEPS = 256


@click.command(context_settings={"show_default": True})
@model_argument
@click.option("-t", "--temperature", default=1.0, help="0 always takes the likeliest token.")
@click.option("-p", "--top-p", default=0.9, help="Choose among this share of probability.")
@click.option("--top-k", default=0, help="Choose among the k likeliest tokens; 0 is off.")
@click.option("--min-p", default=0.0, help="Drop tokens below this share of the likeliest.")
@click.option("--repetition-penalty", default=1.0, help="Above 1 avoids what was said; 1 is off.")
@click.option("-s", "--seed", type=int, help="0 is a seed too.  [default: random, told on stderr]")
@click.option(
    "-n",
    "--steps",
    type=click.IntRange(min=0),
    help=f"Positions to compute, the prompt's included; 0 is the full context.  "
    f"[default: {DEFAULT_STEPS}, in a chat 0]",
)
@click.option("-i", "--prompt", default="", help="What the story, or the chat, begins with.")
@tokenizer_option
@click.option(
    "-m", "--mode", type=click.Choice(["generate", "chat"]), default="generate", help="What to do."
)
@click.option("-y", "--system", default="", help="The system prompt of a chat.")
@dtype_option
@kv_dtype_option
@threads_option
def run(  # noqa: PLR0917 - click passes every option by name
    model: Path | None,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    steps: int | None,
    prompt: str,
    tokenizer: Path | None,
    mode: str,
    system: str,
    dtype: DType,
    kv_dtype: KvDType,
    threads: int | None,
) -> None:
    """Tell a story with MODEL: a llama2.c checkpoint, a packed file, or a model directory.

    Without MODEL it is a Chinese fairy tale, told by the model that comes with the package.
    The story goes to stdout, the speed and a random seed to stderr. `-m chat` holds a chat
    in Llama 2's format instead, until the end of input (Ctrl-D) or of the context.
    """
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    with open_model(model, tokenizer, threads, dtype, kv_dtype) as loaded:
        if mode == "chat":
            from pyllama2c.cli.chat import chat

            chat(loaded, params, steps or 0, system, prompt)
        else:
            tell(loaded, params, DEFAULT_STEPS if steps is None else steps, prompt)


def tell(model: Model, params: SamplingParams, steps: int, prompt: str) -> None:
    """Write prompt and story to stdout, and the speed to stderr.

    `steps` counts as in llama2.c: every step computes one position and yields the next token, so
    a prompt of P ids (BOS included) leaves ``steps - (P - 1)`` tokens to generate. A prompt that
    is longer than that is shown as far as the steps go.
    """
    tokenizer, context = tokenizer_of(model), model.config.max_seq_len
    steps = min(steps or context, context)
    ids = tokenizer.encode(prompt)
    if len(ids) > context:
        raise CapacityError(f"the prompt has {len(ids)} tokens, the context holds {context}")
    room = steps - (len(ids) - 1)
    params = with_seed(params)
    show(tokenizer.decode(ids[: steps + 1]))
    completion = None
    try:
        if room > 0:
            for chunk in model.stream(ids, params.replace(max_tokens=room)):
                show(chunk.text)
                completion = chunk.completion
    finally:
        show("\n")
    if completion is None:
        note(f"the prompt takes all {steps} steps: nothing was generated (see -n)")
    elif completion.timings.tokens_per_second > 0:
        note(f"achieved tok/s: {completion.timings.tokens_per_second:.2f}")
