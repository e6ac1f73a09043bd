"""``pyllama2c eval``: how well a model predicts stories."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllama2c.cli.common import (
    PATH,
    dtype_option,
    kv_dtype_option,
    open_model,
    show,
    threads_option,
    tokenizer_of,
    tokenizer_option,
)

if TYPE_CHECKING:
    from pyllama2c.model import DType, KvDType


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="[MODEL] TEXT")
@tokenizer_option
@dtype_option
@kv_dtype_option
@click.option("--field", help="JSON field that holds the text.  [default: story_zh, story or text]")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many stories.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@threads_option
def evaluate(
    paths: tuple[Path, ...],
    *,
    tokenizer: Path | None,
    dtype: DType,
    kv_dtype: KvDType,
    field: str | None,
    limit: int | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Measure how well MODEL predicts the stories in TEXT.

    TEXT is a .txt file (stories with <|endoftext|> or blank lines between them), .jsonl, .json or
    .parquet, also packed as .gz or in a .tar.gz, or a directory of those. Every token is predicted
    from those before it in its story; stories longer than the context are read through windows
    that overlap by half. Perplexity is per token, and so depends on the tokenizer; bits per
    character do not.
    """
    if len(paths) > 2:
        raise click.UsageError(f"{len(paths)} paths, expected [MODEL] TEXT.")
    from pyllama2c import evaluation
    from pyllama2c.data.readers import read_stories

    model = paths[0] if len(paths) == 2 else None
    stories = islice(read_stories(paths[-1:], field), limit)
    with open_model(model, tokenizer, threads, dtype, kv_dtype) as loaded:
        tokenizer_of(loaded)
        # By way of UTF-8, so that an error names the place of a text that is none.
        done = evaluation.evaluate(loaded, (story.encode().decode() for story in stories))
        about = loaded.info()
    facts = {
        "model": about["path"],
        "text": str(paths[-1]),
        "dtype": about["dtype"],
        "kv_dtype": about["kv_dtype"],
        "stories": done.stories,
        "tokens": done.tokens,
        "characters": done.characters,
        "perplexity": round(done.perplexity, 5),
        "nats_per_token": round(done.nats_per_token, 6),
        "bits_per_character": round(done.bits_per_character, 6),
    }
    if as_json:
        # JSON has no infinity, which a hopeless model can reach.
        facts = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in facts.items()
        }
        show(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        show(f"{name.replace('_', ' '):{width}}  {shown}\n")
