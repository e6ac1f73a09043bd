"""Stories out of whatever a corpus comes in, one at a time.

What a file is, its name says (``.jsonl .json .txt .parquet``, each also as ``.gz`` or inside a
``.tar``, ``.tar.gz``, ``.tgz``); a directory is everything in it, in the order of the names, but
for hidden files and those that by their names hold no stories.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from pyllama2c.data.json_array import iter_json_array
from pyllama2c.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from typing_extensions import Self

END_OF_TEXT = "<|endoftext|>"
# TinyStoriesZh keeps the English original in `story`, beside its translation.
TEXT_FIELDS = ("story_zh", "story", "text")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".parquet")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# JSON that this package and Hugging Face's leave beside stories. Named by itself it is read.
_NO_STORIES = (
    *("report.json", "*.npy.json", "tokenizer*.json"),
    *("dataset_info.json", "dataset_infos.json", "state.json"),
)
_HEAD_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16


class Story(NamedTuple):
    """One story and the place it came from, as ``file:line`` or ``file: row n``."""

    text: str
    where: str

    def encode(self) -> bytes:
        """Return the text in UTF-8.

        Raises:
            DataError: it holds half of a surrogate pair, which JSON can spell; names the place.
        """
        try:
            return self.text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{self.where}: the story holds an unpaired surrogate") from None


def read_stories(sources: Iterable[str | Path], field: str | None = None) -> Iterator[Story]:
    """Yield the stories of ``sources`` in order, with surrounding white space removed.

    Memory does not grow with the sources: each is read as a stream, packed ones too. Empty
    stories are yielded as well; whoever reads decides.

    Args:
        sources: files, directories, or directories written by Hugging Face's ``save_to_disk``.
        field: the name of the field that holds the text in JSON, parquet and datasets. By
            default the first of ``story_zh``, ``story``, ``text`` that holds any. Null is empty.

    Raises:
        DataError: a source does not exist, is of an unknown kind, or has a record that cannot be
            read; names the file and the line.
        MissingExtraError: parquet or a dataset without the ``data`` extra.
    """
    for source in sources:
        for text, where in _read_path(Path(source), field):
            yield Story(text.strip(), where)


def _read_path(path: Path, field: str | None) -> Iterator[tuple[str, str]]:
    if _is_dataset(path):
        yield from _read_dataset(path, field)
    elif path.is_dir():
        found = False
        for found_path in _walk(path):
            found = True
            yield from _read_path(found_path, field)
        if not found:
            raise DataError(f"{path}: no file in this directory ends in {_known_suffixes()}")
    elif not path.exists():
        raise DataError(f"{path}: no such file or directory")
    elif not _is_readable(path.name):
        raise DataError(f"{path}: unknown kind of file, expected a name in {_known_suffixes()}")
    else:
        with path.open("rb") as stream:
            yield from _read_named(stream, path.name, str(path), field)


def _is_dataset(path: Path) -> bool:
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _walk(directory: Path) -> Iterator[Path]:
    """Yield the files and datasets in a directory, however deep, in the order of the names."""
    for path in sorted(directory.iterdir()):
        if _is_skipped(path.name):
            continue
        if not path.is_dir():
            if path.is_file() and _is_readable(path.name):
                yield path
        elif path.is_symlink():  # may lead round in a circle
            continue
        elif _is_dataset(path):
            yield path
        else:
            yield from _walk(path)


def _is_skipped(name: str) -> bool:
    hidden = name.startswith(".") and name != ".."
    return hidden or any(fnmatch(name, pattern) for pattern in _NO_STORIES)


def _is_readable(name: str) -> bool:
    name = name.lower()
    return name.endswith(_TAR_SUFFIXES) or name.removesuffix(".gz").endswith(SUFFIXES)


def _known_suffixes() -> str:
    return " ".join((*SUFFIXES, *_TAR_SUFFIXES)) + " (each but the last three also with .gz)"


def _read_named(
    stream: BinaryIO, name: str, where: str, field: str | None
) -> Iterator[tuple[str, str]]:
    """Read a stream as what ``name`` says it is; ``where`` is what errors call it."""
    name = name.lower()
    if name.endswith(".tgz"):
        name = name.removesuffix(".tgz") + ".tar.gz"
    try:
        if name.endswith(".tar"):
            yield from _read_tar(stream, where, field)
        elif name.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                plain = cast(BinaryIO, unpacked)
                yield from _read_named(plain, name.removesuffix(".gz"), where, field)
        elif name.endswith(".parquet"):
            yield from _read_parquet(stream, where, field)
        elif name.endswith(".txt"):
            yield from _read_txt(stream, where)
        else:
            yield from _read_json(stream, where, field)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{where}: damaged archive ({error})") from error


class _TarInfo(tarfile.TarInfo):
    """Takes nothing but a block of zeros for the end of an archive.

    When reading a stream, tarfile also ends without a word at a header that is cut or damaged.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # that block of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


def _read_tar(stream: BinaryIO, where: str, field: str | None) -> Iterator[tuple[str, str]]:
    found = False
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo) as archive:
        for member in archive:
            if not member.isfile() or not _is_readable(member.name):
                continue
            if any(map(_is_skipped, Path(member.name).parts)):  # as macOS's ._name twins
                continue
            found = True
            file = archive.extractfile(member)
            assert file is not None  # it is a regular file
            with file:
                yield from _read_named(
                    cast(BinaryIO, file), member.name, f"{where}:{member.name}", field
                )
    while stream.read(_HEAD_BYTES):  # to the end, where gzip compares length and checksum
        pass
    if not found:
        raise DataError(f"{where}: no file in this archive ends in {_known_suffixes()}")


# ---- JSON ----------------------------------------------------------------------------------


def _read_json(stream: BinaryIO, where: str, field: str | None) -> Iterator[tuple[str, str]]:
    """Read an array or one value a line; the first character tells which."""
    head, stream = _look_ahead(stream)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        for line, record in iter_json_array(stream, where):
            place = f"{where}:{line}"
            yield _text_of(record, field, place), place
        return
    for number, line_text in _lines(stream, where):
        if not line_text.strip():
            continue
        place = f"{where}:{number}"
        try:
            record = json.loads(line_text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: cannot be read as JSON ({error})") from None
        yield _text_of(record, field, place), place


def _text_of(record: Any, field: str | None, where: str) -> str:
    if isinstance(record, str) and field is None:
        return record
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with a story, found {_shown(record)}")
    candidates = TEXT_FIELDS if field is None else (field,)
    present = [name for name in candidates if name in record]
    for name in present:
        text = record[name]
        if not isinstance(text, str | None):
            raise DataError(f"{where}: field {name!r} is {_shown(text)}, expected a string")
        if text and not text.isspace():
            return text
    if present:
        return ""
    raise DataError(
        f"{where}: no field {' or '.join(map(repr, candidates))}; this record has "
        f"{', '.join(map(repr, record)) or 'no fields'}"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- text ----------------------------------------------------------------------------------


def _read_txt(stream: BinaryIO, where: str) -> Iterator[tuple[str, str]]:
    """Read stories with ``<|endoftext|>`` between them, or else blank lines.

    Where the mark is used, blank lines are paragraphs within a story.
    """
    head, stream = _look_ahead(stream)
    marked = END_OF_TEXT.encode() in head
    between = re.compile(re.escape(END_OF_TEXT) if marked else r"\n\s*\n")
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, line, ended = "", 1, False  # what is still to be cut, the line it begins on
    while not ended:
        # Reading at least as much as is pending keeps the searching of a long story linear.
        data = stream.read(max(_CHUNK_BYTES, len(text)))
        ended = not data
        while data.endswith(b"\r") and (more := stream.read(1)):  # perhaps half of a line end
            data += more
        try:
            text += decoder.decode(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), final=ended)
        except UnicodeDecodeError as error:
            line += text.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(f"{where}:{line}: not UTF-8 ({error.reason})") from None
        begin = 0
        for match in between.finditer(text):
            story = text[begin : match.start()]
            if marked or story.strip():
                yield story, f"{where}:{line + _lines_before(story)}"
            line += text.count("\n", begin, match.end())
            begin = match.end()
        text = text[begin:]
    if text.strip():
        yield text, f"{where}:{line + _lines_before(text)}"


def _lines_before(story: str) -> int:
    """Count the blank lines that a story begins with."""
    return story.count("\n", 0, len(story) - len(story.lstrip()))


def _lines(stream: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Yield ``(number, line)``, decoded one by one so that an error can name the line."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}:{number}: not UTF-8 ({error.reason})") from None
        yield number, line


class _Rejoined(io.RawIOBase):
    """Bytes that have been read already, and then the rest of the stream."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head = io.BytesIO(head)
        self.rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.head.read(len(buffer)) or self.rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _look_ahead(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Return the first megabyte, and a stream that still begins with it (a pipe cannot seek)."""
    head = stream.read(_HEAD_BYTES)
    return head, io.BufferedReader(_Rejoined(head, stream), _HEAD_BYTES)


# ---- parquet and datasets ------------------------------------------------------------------


def _read_parquet(stream: BinaryIO, where: str, field: str | None) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            f'{where}: reading parquet needs pyarrow: pip install "pyllama2c[data]"'
        ) from error
    with tempfile.TemporaryFile() as unpacked:
        # Seeking in a gzip begins anew each time; a file in a streamed tar cannot even be asked.
        if isinstance(stream, (gzip.GzipFile, tarfile.ExFileObject)) or not stream.seekable():
            while block := stream.read(_HEAD_BYTES):
                unpacked.write(block)
            unpacked.seek(0)
            stream = cast(BinaryIO, unpacked)
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            columns = _text_columns(table.schema_arrow.names, field, where)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    place = f"{where}: row {row}"
                    yield _text_of(record, field, place), place
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{where}: not a readable parquet file ({error})") from error


def _read_dataset(path: Path, field: str | None) -> Iterator[tuple[str, str]]:
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            f'{path}: reading a dataset needs datasets: pip install "pyllama2c[data]"'
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))  # memory-mapped
        parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        for part, table in parts.items():
            where = f"{path}:{part}" if part else str(path)
            columns = _text_columns(table.column_names, field, where)
            for row, record in enumerate(table.select_columns(columns), start=1):
                place = f"{where}: row {row}"
                yield _text_of(record, field, place), place
    except DataError:
        raise
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable dataset ({error})") from error


def _text_columns(names: list[str], field: str | None, where: str) -> list[str]:
    candidates = TEXT_FIELDS if field is None else (field,)
    if columns := [name for name in candidates if name in names]:
        return columns
    wanted = " or ".join(map(repr, candidates))
    raise DataError(f"{where}: no column {wanted}; there are {', '.join(map(repr, names))}")
