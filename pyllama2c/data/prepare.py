"""Merge sources into a clean corpus: no duplicates, no empty stories, a held-out part, a report."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from pyllama2c.data.files import atomic_write, made_directory, refuse_to_replace
from pyllama2c.data.readers import read_stories
from pyllama2c.errors import ArgumentError, DataError

HISTOGRAM_BINS = 10


@dataclass
class Report:
    """What `prepare` found. Lengths are in characters (code points)."""

    stories: int = 0
    train_stories: int = 0
    validation_stories: int = 0
    duplicates: int = 0
    empty: int = 0
    characters: int = 0
    distinct_characters: int = 0
    distinct_hanzi: int = 0
    length_min: int = 0
    length_mean: float = 0.0
    length_median: float = 0.0
    length_max: int = 0
    length_histogram: list[tuple[int, int, int]] = field(default_factory=list)
    """(from, to, stories) with both ends included."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def prepare(
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    field: str | None = None,
    validation: float = 0.01,
    seed: int = 0,
) -> Report:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``report.json`` into the directory ``out``.

    Each line of the first two is ``{"story": ...}``. Stories that are empty or that have been seen
    before (exactly, apart from white space around them) are dropped and counted. Whether a story
    is held out depends on the seed and its own text alone, not on the order of the sources or on
    the other stories. Memory does not grow with the corpus.

    Args:
        sources: what `read_stories` reads.
        out: a directory, made if it is not there.
        field: the field that holds the text; see `read_stories`.
        validation: the share of the stories to hold out, from 0 to below 1.
        seed: another seed holds out other stories.

    Raises:
        ArgumentError: ``validation`` is out of range, a source would be replaced, or ``out`` cannot
            be a directory.
        DataError: a source cannot be read, or there is no story in any.
    """
    if not 0 <= validation < 1:
        raise ArgumentError(f"validation is {validation}, expected a share from 0 to below 1")
    sources, out = list(sources), Path(out)
    names = ("train.jsonl", "validation.jsonl", "report.json")
    refuse_to_replace(sources, (out / name for name in names))
    report = Report()
    lengths: Counter[int] = Counter()
    characters: set[str] = set()
    key = str(seed).encode()
    with (
        made_directory(out),
        atomic_write(out / "train.jsonl") as train,
        atomic_write(out / "validation.jsonl") as held_out,
        _SeenBefore() as seen,
    ):
        for story in read_stories(sources, field):
            if not story.text:
                report.empty += 1
                continue
            digest = hashlib.blake2b(story.encode(), digest_size=16, key=key).digest()
            if seen.add(digest[:8]):
                report.duplicates += 1
                continue
            if int.from_bytes(digest[8:], "little") < validation * 2**64:
                _write(held_out, story.text)
                report.validation_stories += 1
            else:
                _write(train, story.text)
                report.train_stories += 1
            lengths[len(story.text)] += 1
            characters.update(story.text)
        if not lengths:
            raise DataError("no story in any of the sources")
    _summarize(report, lengths, characters)
    with atomic_write(out / "report.json") as file:
        file.write(report.to_json() + "\n")
    return report


class _SeenBefore:
    """A set of 8-byte digests in a temporary database, which keeps on disk what is too much.

    Among ten million stories the chance that any two differ and share a digest is 3 in a million.
    """

    def __enter__(self) -> _SeenBefore:
        self.database = sqlite3.connect("", isolation_level=None)  # "": private, temporary
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("PRAGMA cache_size = -32768")  # KiB
        self.database.execute("CREATE TABLE seen (digest INTEGER PRIMARY KEY)")
        self.database.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def add(self, digest: bytes) -> bool:
        """Add a digest; True if it was there already."""
        value = int.from_bytes(digest, "little", signed=True)
        cursor = self.database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (value,))
        return cursor.rowcount == 0


def _write(file: IO[str], text: str) -> None:
    file.write(json.dumps({"story": text}, ensure_ascii=False) + "\n")


def _summarize(report: Report, lengths: Counter[int], characters: set[str]) -> None:
    """Fill in the figures that need the whole corpus."""
    ordered = sorted(lengths)
    report.stories = lengths.total()
    report.characters = sum(length * count for length, count in lengths.items())
    report.distinct_characters = len(characters)
    report.distinct_hanzi = sum(map(is_hanzi, characters))
    report.length_min, report.length_max = ordered[0], ordered[-1]
    report.length_mean = report.characters / report.stories
    middle = (report.stories - 1) // 2, report.stories // 2
    report.length_median = sum(_nth(lengths, ordered, n) for n in middle) / 2
    width = -(-(report.length_max - report.length_min + 1) // HISTOGRAM_BINS)
    bins = Counter[int]()
    for length, count in lengths.items():
        bins[(length - report.length_min) // width] += count
    report.length_histogram = [
        (begin, begin + width - 1, bins[index])
        for index, begin in enumerate(range(report.length_min, report.length_max + 1, width))
    ]


def _nth(lengths: Counter[int], ordered: list[int], n: int) -> int:
    """Return the n-th smallest length, counting from 0."""
    for length in ordered:
        n -= lengths[length]
        if n < 0:
            return length
    raise IndexError(n)


def is_hanzi(character: str) -> bool:
    """Tell whether a character is a CJK ideograph (Unicode's unified and compatibility blocks)."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
        or code == 0x3007
    )
