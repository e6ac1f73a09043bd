"""Many stories from one: a template with places where the stories differ.

``{soft|warm}`` is one of its alternatives, chosen anew wherever it stands. ``{hero:a cat|a dog}``
is chosen once, and ``{hero}`` repeats it. ``{food~hero:milk|a bone}`` takes the alternative that
stands where the hero's stood, so that what belongs together stays together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from random import Random

from pyllama2c.data.copies import write_copies
from pyllama2c.data.readers import Story
from pyllama2c.errors import DataError

_SLOT = re.compile(r"\{([^{}]*)\}")
_HEAD = re.compile(r"(?:(?P<name>\w+)(?:~(?P<like>\w+))?:)?(?P<options>.*)", re.DOTALL)


class Template:
    """A story with alternatives.

    Args:
        story: the template's text, and where it stands.

    Raises:
        DataError: a brace without its partner, a name that is used before it is chosen or chosen
            twice, fewer than two alternatives, another number of them than those they follow, or
            what cannot be encoded.
    """

    def __init__(self, story: Story) -> None:
        self._where = story.where
        # Text and the inside of braces take turns, and text is first and last.
        self._parts = _SLOT.split(story.encode().decode())
        for text in self._parts[::2]:
            if "{" in text or "}" in text:
                raise DataError(f"{self._where}: a brace without its partner near {text[:40]!r}")
        self.tell(Random(0))

    def tell(self, random: Random) -> str:
        """Make one of its stories."""
        chosen: dict[str, tuple[int, list[str]]] = {}
        told = list(self._parts)
        for at in range(1, len(told), 2):
            told[at] = self._fill(told[at], chosen, random)
        return "".join(told)

    def _fill(self, slot: str, chosen: dict[str, tuple[int, list[str]]], random: Random) -> str:
        if slot in chosen:
            index, options = chosen[slot]
            return options[index]
        match = _HEAD.fullmatch(slot)
        assert match is not None
        name, like = match["name"], match["like"]
        options = match["options"].split("|")
        problem = None
        if name is not None and name in chosen:
            problem = f"{name} was chosen before; {{{name}}} repeats it"
        elif len(options) < 2:
            problem = "expected a name chosen before, or alternatives with | between them"
        elif like is not None and like not in chosen:
            problem = f"{like} is not chosen yet"
        elif like is not None and len(options) != len(chosen[like][1]):
            problem = f"{len(options)} alternatives, but {like} has {len(chosen[like][1])}"
        if problem:
            raise DataError(f"{self._where}: {{{slot}}}: {problem}")
        index = random.randrange(len(options)) if like is None else chosen[like][0]
        if name is not None:
            chosen[name] = index, options
        return options[index]


def expand(templates: Iterable[Story], out: str | Path, *, copies: int, seed: int = 0) -> int:
    """Write ``copies`` stories of each template as JSONL; returns how many.

    Args:
        templates: the templates' texts; see `Template`.
        out: a JSONL file; see `write_copies` for its order.
        copies: how many stories of each.
        seed: the same seed writes the same file.

    Raises:
        DataError: a template is wrong; names it.
    """
    parsed = [Template(story) for story in templates]
    return write_copies(parsed, Template.tell, out, copies=copies, seed=seed)
