"""``pyllama2c data``: prepare, augment, expand and tokenize a training corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllama2c.cli.common import PATH

if TYPE_CHECKING:
    from pyllama2c.data.prepare import Report
    from pyllama2c.data.readers import Story

_BAR_WIDTH = 40
_SOURCES = click.argument("sources", nargs=-1, required=True, type=PATH, metavar="SOURCES...")
_FIELD = click.option(
    "--field", help="Field that holds the text.  [default: story_zh, story or text]"
)


def progress(stories: Iterator[Story], what: str) -> Iterator[Story]:
    """Count stories on stderr as they go by, on a terminal."""
    from tqdm import tqdm

    return iter(tqdm(stories, desc=what, unit=" stories", unit_scale=True, disable=None))


@click.group()
def data() -> None:
    """Prepare and tokenize a training corpus."""


@data.command(context_settings={"show_default": True})
@_SOURCES
@click.option("-o", "--out", type=PATH, required=True, help="Directory.")
@_FIELD
@click.option("--validation", default=0.01, help="Share of the stories to hold out.")
@click.option("--seed", default=0, help="Another one holds out other stories.")
def prepare(
    sources: tuple[Path, ...], out: Path, field: str | None, validation: float, seed: int
) -> None:
    """Merge SOURCES into OUT/train.jsonl and OUT/validation.jsonl, without duplicates.

    SOURCES are .jsonl, .json, .txt and .parquet files, also packed as .gz or in a .tar.gz,
    directories of them, and Hugging Face datasets saved to disk. The report is printed and
    written to OUT/report.json.
    """
    from pyllama2c.data.prepare import prepare as prepare_corpus

    report = prepare_corpus(sources, out, field=field, validation=validation, seed=seed)
    click.echo(_shown(report))


def _shown(report: Report) -> str:
    lines = [
        f"stories             {report.stories:>14,}",
        f"  to train on       {report.train_stories:>14,}",
        f"  held out          {report.validation_stories:>14,}",
        f"duplicates dropped  {report.duplicates:>14,}",
        f"empty ones dropped  {report.empty:>14,}",
        f"characters          {report.characters:>14,}",
        f"  distinct          {report.distinct_characters:>14,}",
        f"  distinct Hanzi    {report.distinct_hanzi:>14,}",
        "characters a story: "
        f"min {report.length_min:,}, mean {report.length_mean:,.1f}, "
        f"median {report.length_median:,.1f}, max {report.length_max:,}",
    ]
    most = max(count for _, _, count in report.length_histogram)
    for begin, end, count in report.length_histogram:
        bar = "#" * round(_BAR_WIDTH * count / most)
        lines.append(f"{begin:>9,} to {end:>9,}  {count:>10,}  {bar}".rstrip())
    return "\n".join(lines)


@data.command(context_settings={"show_default": True})
@_SOURCES
@click.option("-o", "--out", type=PATH, required=True, help="JSONL file.")
@click.option(
    "--names",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Names to exchange, one a line, followed by the longer words to leave alone.",
)
@click.option("--copies", type=click.IntRange(min=1), default=1, help="Versions of each story.")
@click.option("--seed", default=0, help="Another one exchanges other names.")
@_FIELD
def augment(  # noqa: PLR0917 - click passes every option by name
    sources: tuple[Path, ...], out: Path, names: Path, copies: int, seed: int, field: str | None
) -> None:
    """Write each story several times, with its heroes' names consistently exchanged.

    For small corpora, which are held in memory. Give it training stories alone.
    """
    from pyllama2c.data.augment import Names
    from pyllama2c.data.augment import augment as augment_corpus
    from pyllama2c.data.files import refuse_to_replace
    from pyllama2c.data.readers import read_stories

    refuse_to_replace((*sources, names), [out])
    written = augment_corpus(
        read_stories(sources, field), Names.read(names), out, copies=copies, seed=seed
    )
    click.echo(f"{out}: {written:,} stories")


@data.command(context_settings={"show_default": True})
@_SOURCES
@click.option("-o", "--out", type=PATH, required=True, help="JSONL file.")
@click.option("--copies", type=click.IntRange(min=1), default=1, help="Stories of each template.")
@click.option("--seed", default=0, help="Another one makes other choices.")
def expand(sources: tuple[Path, ...], out: Path, copies: int, seed: int) -> None:
    """Write stories from templates, which the field `template` of SOURCES holds.

    \b
    {soft|warm}              one of these, chosen anew wherever it stands
    {hero:a cat|a dog}       chosen once; {hero} repeats it
    {food~hero:milk|a bone}  the one that stands where the hero stood
    """  # noqa: D301 - click takes the backspace for "leave these lines as they are"
    from pyllama2c.data.files import refuse_to_replace
    from pyllama2c.data.readers import read_stories
    from pyllama2c.data.templates import expand as expand_templates

    refuse_to_replace(sources, [out])
    written = expand_templates(read_stories(sources, "template"), out, copies=copies, seed=seed)
    click.echo(f"{out}: {written:,} stories")


@data.command(context_settings={"show_default": True})
@_SOURCES
@click.option("-z", "--tokenizer", type=PATH, required=True, help="A tokenizer.model.")
@click.option("-o", "--out", type=PATH, required=True, help="Token file, NAME.npy.")
@_FIELD
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Processes.  [default: one for each CPU]"
)
@click.option("--shard", type=click.IntRange(min=1), default=10_000, help="Stories saved together.")
def tokenize(  # noqa: PLR0917 - click passes every option by name
    sources: tuple[Path, ...],
    tokenizer: Path,
    out: Path,
    field: str | None,
    jobs: int | None,
    shard: int,
) -> None:
    """Encode stories into a token file, with BOS before each.

    Interrupted, it keeps what it has; started again, it goes on from there.
    """
    from pyllama2c.data.files import refuse_to_replace
    from pyllama2c.data.readers import read_stories
    from pyllama2c.data.tokenize import tokenize as tokenize_corpus
    from pyllama2c.data.tokens import note_path

    files = [path for path in (*sources, tokenizer) if path.is_file()]
    refuse_to_replace(files, [out, note_path(out)])
    stories = progress(read_stories(sources, field), "tokenize")
    info = tokenize_corpus(stories, tokenizer, out, jobs=jobs, shard_stories=shard)
    click.echo(
        f"{out}: {info.tokens:,} tokens, {info.stories:,} stories, "
        f"{info.characters / info.tokens:.3f} characters a token"
    )
