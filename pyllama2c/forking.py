"""What must be put right in a process that `os.fork` has made."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class AfterFork(Protocol):
    """Something that holds locks or threads."""

    def _after_fork(self) -> None: ...


_everything: weakref.WeakSet[AfterFork] = weakref.WeakSet()


def register(something: AfterFork) -> None:
    """Have `_after_fork` called in every child process, as long as the object lives."""
    _everything.add(something)


def _after_fork() -> None:
    for something in list(_everything):
        something._after_fork()


os.register_at_fork(after_in_child=_after_fork)
