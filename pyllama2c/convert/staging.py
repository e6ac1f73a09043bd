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


@contextmanager
def staged_files(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder whose files move to ``directory`` when the block ends without an error.

    On an error the temporary folder is deleted, and ``directory`` is as it was. A file that is
    there already is left alone if it would not change, and replaced only with ``force``.

    Raises:
        ArgumentError: a file is in the way and ``force`` is false.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the directory, so that moving is a rename on the same file system.
    staging = Path(tempfile.mkdtemp(prefix=".pyllama2c-", dir=directory))
    try:
        yield staging
        made = sorted(staging.iterdir())
        changed = [path for path in made if not _same(path, directory / path.name)]
        for path in changed:
            if os.path.lexists(directory / path.name) and not force:
                raise ArgumentError(
                    f"{directory / path.name} exists and differs from what would be written; "
                    "choose another directory or use --force"
                )
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in changed:
            path.chmod(0o666 & ~_umask())
            path.replace(directory / path.name)
    except BaseException:
        shutil.rmtree(directory if is_new else staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


def _same(new: Path, old: Path) -> bool:
    """Whether a file is there already with the same content."""
    return old.is_file() and filecmp.cmp(new, old, shallow=False)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
