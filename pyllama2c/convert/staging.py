"""Results that appear complete or not at all: made aside, moved into place at the end."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllama2c.errors import ArgumentError

_PREFIX = ".pyllama2c-"


@contextmanager
def staged_files(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder whose files move to ``directory`` when the block ends without an error.

    On an error the temporary folder is deleted, and ``directory`` is as it was. A file that is
    there already is left alone if it would not change, and replaced only with ``force``.

    Raises:
        ArgumentError: a file is in the way and ``force`` is false, or a directory is.
        OSError: the disk is full, say; names ``directory``, not the temporary folder.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the directory, so that moving is a rename on the same file system.
    with _names(directory):
        staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
    try:
        with _names(directory):
            yield staging
        made = sorted(staging.iterdir())
        changed = [path for path in made if not _same(path, directory / path.name)]
        for path in changed:
            if (directory / path.name).is_dir():
                raise ArgumentError(f"{directory / path.name} is a directory, expected a file")
            if os.path.lexists(directory / path.name) and not force:
                raise ArgumentError(
                    f"{directory / path.name} exists and differs from what would be written; "
                    "choose another directory or use --force"
                )
            with _names(directory), path.open("rb") as file:
                os.fsync(file.fileno())
        with _names(directory):
            for path in changed:
                path.chmod(0o666 & ~_umask())
                path.replace(directory / path.name)
    except BaseException:
        shutil.rmtree(directory if is_new else staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


@contextmanager
def _names(directory: Path) -> Iterator[None]:
    """Let the errors of the operating system name this directory, not what lies hidden in it."""
    try:
        yield
    except OSError as error:
        names = f"{error.filename or ''} {error.filename2 or ''}"
        if error.errno is None or (error.filename is not None and _PREFIX not in names):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(directory)) from error


def _same(new: Path, old: Path) -> bool:
    """Whether a file is there already with the same content."""
    return old.is_file() and filecmp.cmp(new, old, shallow=False)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
