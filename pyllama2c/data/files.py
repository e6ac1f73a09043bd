"""Files that are complete or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pyllama2c.errors import ArgumentError


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when the block ends without an error.

    It is written beside its place, flushed to the disk and renamed, so that neither an exception
    nor a kill nor a power cut leaves half a file under the name.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def made_directory(path: Path) -> Iterator[None]:
    """Make a directory; if the block fails and leaves nothing in it, it is gone again.

    Raises:
        ArgumentError: a file is in the way.
    """
    missing = []
    for directory in (path, *path.parents):
        if directory.exists():
            if not directory.is_dir():
                raise ArgumentError(
                    f"out needs the directory {str(path)!r}, but {str(directory)!r} is a file; "
                    "choose another place"
                )
            break
        missing.append(directory)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what is not empty stays
            for directory in missing:
                directory.rmdir()
        raise


def refuse_to_replace(sources: Iterable[str | Path], files: Iterable[Path]) -> None:
    """Refuse to write ``files`` over one of the sources, or into a directory that is one.

    Raises:
        ArgumentError: names the file and the source.
    """
    read = {Path(source).resolve(): source for source in sources}
    for file in files:
        place = file.resolve()
        for path in (place, *place.parents):
            if path in read:
                harm = "replace" if path == place else "become part of"
                raise ArgumentError(
                    f"out is {str(file)!r}: it would {harm} the source {str(read[path])!r}; "
                    "choose another place"
                )


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
