"""A corpus of several different tellings of the same stories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from pyllama2c.data.files import atomic_write, made_directory

T = TypeVar("T")


def write_copies(
    items: list[T], tell: Callable[[T, Random], str], out: str | Path, *, copies: int, seed: int
) -> int:
    """Write ``copies`` stories of each item as JSONL; returns how many stories.

    The passes over all items follow one another, each in an order of its own, so that a model that
    reads the file once meets every item ``copies`` times, evenly spread.

    Args:
        items: what is told; their order changes.
        tell: makes one story of an item.
        out: a JSONL file; its folder is made if need be.
        copies: how many stories of each.
        seed: the same seed writes the same file.
    """
    random = Random(seed)
    out = Path(out)
    with made_directory(out.parent), atomic_write(out) as file:
        for _ in range(copies):
            random.shuffle(items)
            for item in items:
                line = json.dumps({"story": tell(item, random)}, ensure_ascii=False)
                file.write(line + "\n")
    return copies * len(items)
