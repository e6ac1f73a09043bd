"""More stories from few: the same stories with other heroes.

A small corpus teaches a model which name goes with which story. Exchanging the personal names,
consistently within a story and differently in each copy, teaches it that any hero can have any
adventure, and that a hero keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pyllama2c.data.copies import write_copies
from pyllama2c.data.readers import Story
from pyllama2c.errors import DataError


@dataclass(frozen=True)
class Names:
    """Names that can stand for one another, and the longer words that only look like them."""

    names: tuple[str, ...]
    not_names: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> Names:
        """Read a file with one name a line, followed by the longer words to leave alone.

        ``安安 安安静静`` says that 安安 is a name, but not inside 安安静静.

        Raises:
            DataError: fewer than two names, or not UTF-8.
        """
        names: list[str] = []
        not_names: list[str] = []
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason})") from None
        for line in text.splitlines():
            name, *longer = line.split() or [""]
            if name:
                names.append(name)
                not_names.extend(longer)
        if len(set(names)) < 2:
            raise DataError(f"{path}: expected at least two names, one a line")
        return cls(tuple(dict.fromkeys(names)), tuple(not_names))

    def swap(self, text: str, random: Random) -> str:
        """Give each name in ``text`` another one, different names different ones."""
        # Longest first: at one place the longest word that fits is the word that is there.
        words = sorted({*self.names, *self.not_names}, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, words)))
        found = dict.fromkeys(match[0] for match in pattern.finditer(text))
        heroes = [word for word in found if word in self.names]
        new = dict(zip(heroes, random.sample(self.names, len(heroes)), strict=True))
        return pattern.sub(lambda match: new.get(match[0], match[0]), text)


def augment(
    stories: Iterable[Story], names: Names, out: str | Path, *, copies: int, seed: int = 0
) -> int:
    """Write ``copies`` versions of each story with exchanged names; returns how many stories.

    The stories are held in memory: this is for small corpora.

    Args:
        stories: the training stories alone, so that nothing held out comes in.
        names: what to exchange.
        out: a JSONL file; see `write_copies` for its order.
        copies: how many versions of each.
        seed: the same seed writes the same file.

    Raises:
        DataError: a story cannot be encoded; names it.
    """
    # What could not be written is refused here, where its place is known.
    texts = [story.encode().decode() for story in stories]
    return write_copies(texts, names.swap, out, copies=copies, seed=seed)
