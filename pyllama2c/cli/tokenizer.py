"""``pyllama2c tokenizer``: train a tokenizer."""

from __future__ import annotations

from pathlib import Path

import click

from pyllama2c.cli.common import PATH


@click.group()
def tokenizer() -> None:
    """Train a tokenizer."""


@tokenizer.command(context_settings={"show_default": True})
@click.argument("sources", nargs=-1, required=True, type=PATH, metavar="SOURCES...")
@click.option("-o", "--out", type=PATH, required=True, help="Directory.")
@click.option("--vocab-size", default=3000, help="Number of pieces.")
@click.option("--sample", default=800_000, help="Stories to train on, drawn at random.")
@click.option(
    "--character-coverage",
    default=0.9995,
    help="Share of the text whose characters get pieces of their own.",
)
@click.option(
    "--byte-fallback/--no-byte-fallback",
    default=True,
    help="Spell what has no piece in bytes.",
)
@click.option(
    "--split-digits/--no-split-digits", default=True, help="Make each digit a piece of its own."
)
@click.option("--seed", default=0, help="Another one draws another sample.")
@click.option("--field", help="Field that holds the text.  [default: story_zh, story or text]")
def train(  # noqa: PLR0917 - click passes every option by name
    sources: tuple[Path, ...],
    out: Path,
    vocab_size: int,
    sample: int,
    character_coverage: float,
    byte_fallback: bool,
    split_digits: bool,
    seed: int,
    field: str | None,
) -> None:
    """Train a SentencePiece BPE tokenizer on SOURCES, which `data prepare` reads too.

    Writes tokenizer.model, tokenizer.bin (llama2.c) and what transformers' AutoTokenizer needs.
    """
    from pyllama2c.cli.data import progress
    from pyllama2c.data.files import made_directory, refuse_to_replace
    from pyllama2c.data.readers import read_stories
    from pyllama2c.data.tokenizer import (
        TOKENIZER_FILES,
        TokenizerConfig,
        train_tokenizer,
        write_tokenizer,
    )

    config = TokenizerConfig(
        vocab_size=vocab_size,
        sample=sample,
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
        split_digits=split_digits,
        seed=seed,
    )
    files = [path for path in sources if path.is_file()]
    refuse_to_replace(files, [out / name for name in TOKENIZER_FILES])
    with made_directory(out):  # training takes long: what is wrong there shows before it
        model = train_tokenizer(progress(read_stories(sources, field), "read"), config)
        write_tokenizer(model, out)
    click.echo(f"{out}: tokenizer.model, tokenizer.bin, tokenizer.json, {vocab_size:,} pieces")
