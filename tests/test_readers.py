"""Reading corpora: every format gives the same stories; what is wrong is named with its line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pyllama2c.data import json_array, readers
from pyllama2c.data.json_array import iter_json_array
from pyllama2c.data.readers import read_stories
from pyllama2c.errors import DataError

# Line breaks, quotation marks, escapes, a brace that closes nothing, four bytes of UTF-8.
STORIES = ["从前，有一只小兔子。\n她叫莉莉。", 'A "red" ball]} \\ and 🐰.', "Third."]


def _json(field: str) -> bytes:
    return json.dumps([{field: s, "n": 1} for s in STORIES], ensure_ascii=False, indent=1).encode()


def _jsonl(field: str) -> bytes:
    return "".join(json.dumps({field: story}) + "\n" for story in STORIES).encode()


def _txt(between: str) -> bytes:
    return between.join(STORIES).encode()


def _gz(content: bytes) -> bytes:
    return gzip.compress(content)


def _tar(name: str, content: bytes, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for member, data in ((f"data/._{name}", b"\0junk"), (f"data/{name}", content)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


FILES: dict[str, bytes] = {
    "array.json": _json("story"),
    "zh.json": json.dumps([{"story": "x", "story_zh": s} for s in STORIES]).encode(),
    "strings.json": json.dumps(STORIES).encode(),
    "bom.json": b"\xef\xbb\xbf" + _json("text"),
    "lines.jsonl": _jsonl("text"),
    "lines.json": _jsonl("story"),  # named like an array, but one object a line
    "blank.txt": _txt("\n\n\n"),
    "marked.txt": _txt("\n<|endoftext|>\n"),
    "windows.txt": _txt("\n\n").replace(b"\n", b"\r\n"),
    "mac.txt": _txt("\n\n").replace(b"\n", b"\r"),
    "array.json.gz": _gz(_json("story")),
    "lines.jsonl.gz": _gz(_jsonl("story")),
    "blank.txt.gz": _gz(_txt("\n\n")),
    "archive.tar.gz": _tar("stories.json", _json("story")),
    "archive.tar": _tar("stories.jsonl.gz", _gz(_jsonl("story")), "w"),
}


def texts(*sources: Path, field: str | None = None) -> list[str]:
    return [story.text for story in read_stories(sources, field)]


@pytest.mark.parametrize("name", FILES)
def test_every_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert texts(tmp_path / name) == STORIES


@pytest.mark.parametrize("suffix", ["parquet", "parquet.gz", "tar", "tar.gz"])
def test_parquet(tmp_path: Path, suffix: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": STORIES}), plain)
    path = tmp_path / f"stories.{suffix}"
    packed = {
        "parquet": plain.getvalue(),
        "parquet.gz": _gz(plain.getvalue()),
        "tar": _tar("a.parquet", plain.getvalue(), "w"),
        "tar.gz": _tar("a.parquet", plain.getvalue()),
    }
    path.write_bytes(packed[suffix])
    assert texts(path) == STORIES
    columns = {"story_zh": [None, "a"], "story": ["b", "c"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "null.parquet")
    assert texts(tmp_path / "null.parquet") == ["b", "a"]
    assert texts(tmp_path / "null.parquet", field="story_zh") == ["", "a"]
    with pytest.raises(DataError, match=r"row 1.*'id' is 1, expected a string"):
        texts(path, field="id")
    with pytest.raises(DataError, match="no column 'plot'; there are 'id', 'text'"):
        texts(path, field="plot")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"not a readable parquet file|damaged"):
        texts(path)


def test_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"story": STORIES})
    part.save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == STORIES
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "two")
    assert texts(tmp_path / "two") == STORIES * 2


def test_a_dataset_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable dataset"):
        texts(tmp_path)


def test_what_lies_beside_stories_is_left_alone(tmp_path: Path) -> None:
    for name in (
        *("report.json", "train.npy.json", "tokenizer_config.json", "dataset_infos.json"),
        *("dataset_info.json", ".cache/a.txt", ".a.txt"),
    ):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "in" / name).write_text('{"stories": 3}')
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    assert texts(tmp_path / "in") == ["one"]
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "in", ".")
    assert texts(tmp_path / "all.tar") == ["one"]


def test_datasets_in_a_directory(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name in ("a", "b"):
        part = datasets.Dataset.from_dict({"story": [name], "text": ["other"]})
        part.save_to_disk(tmp_path / "sub" / name)
    (tmp_path / "c.txt").write_text("c")
    assert texts(tmp_path) == ["c", "a", "b"]
    cut = next((tmp_path / "sub" / "b").glob("*.arrow"))
    cut.write_bytes(cut.read_bytes()[:20])
    with pytest.raises(DataError, match="not a readable dataset"):
        texts(tmp_path)


def test_an_archive_packed_from_the_folder_above(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar("../one.txt", b"One", "w"))
    (tmp_path / "b.tar").write_bytes(_tar("../.hidden/two.txt", b"Two", "w"))
    assert [story.text for story in read_stories([tmp_path / "a.tar"])] == ["One"]
    with pytest.raises(DataError, match="no file in this archive"):
        list(read_stories([tmp_path / "b.tar"]))


def test_directories_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt.gz").write_bytes(_gz(b"one"))
    (tmp_path / "sub" / "c.jsonl").write_text('"three"\n')
    (tmp_path / "LICENSE").write_text("not a story")
    assert texts(tmp_path) == ["one", "two", "three"]
    assert texts(tmp_path / "b.txt", tmp_path / "a.txt.gz") == ["two", "one"]


def test_field(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text('{"story": "a", "plot": "b"}\n')
    assert texts(path, field="plot") == ["b"]
    with pytest.raises(DataError, match="no field 'moral'; this record has 'story', 'plot'"):
        texts(path, field="moral")


def test_null_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text('{"story": null}\n{"story_zh": null, "story": "b"}\n')
    assert texts(path) == ["", "b"]
    path.write_text('{"story_zh": " ", "story": "b"}\n{"text": ""}\n')
    assert texts(path) == ["b", ""]


def test_where_a_story_is(tmp_path: Path) -> None:
    for name, lines in {
        "array.json": [3, 7, 11],
        "lines.jsonl": [1, 2, 3],
        "marked.txt": [1, 4, 6],
    }.items():
        (tmp_path / name).write_bytes(FILES[name])
        wanted = [f"{tmp_path / name}:{line}" for line in lines]
        # The array's objects begin on these lines, at "{".
        found = [story.where for story in read_stories([tmp_path / name])]
        assert found == [w if name != "array.json" else _line_before(w) for w in wanted]


def _line_before(where: str) -> str:
    path, _, line = where.rpartition(":")
    return f"{path}:{int(line) - 1}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"story": "a"}\n{"story": 5}\n', r"a.jsonl:2: field 'story' is 5"),
        ("a.jsonl", b'{"story": "a"}\n{"story": \n', r"a.jsonl:2: cannot be read as JSON"),
        ("a.jsonl", b'"a"\n' + b"1" * 5000, r"a.jsonl:2: cannot be read as JSON \(Exceeds"),
        ("a.json", b'["a",\n' + b"1" * 5000 + b"]", r"a.json:2: Exceeds the limit"),
        ("a.json", b"[" * 100_000, r"a.json:1: maximum recursion depth"),
        ("a.jsonl", b"7\n", r"a.jsonl:1: expected an object with a story, found 7"),
        ("a.jsonl", b'"ok"\n"\xff"\n', r"a.jsonl:2: not UTF-8"),
        ("a.json", b'["a",\n"b"', r"a.json:2: the file ends in the middle"),
        ("a.json", b'["a"\n"b"]', r"a.json:2: expected ',' or ']'"),
        ("a.json", b'["a"] "b"', r"text after the end"),
        ("a.json", b'["a",\n{1: "this is a long wrong object"}]', r"a.json:2: Expecting"),
        ("a.txt", b"good\n\xff\xfe", r"a.txt:2: not UTF-8"),
        ("a.txt", b"good\r\n\r\xe5\xb0", r"a.txt:3: not UTF-8"),
        ("a.json.gz", gzip.compress(_json("story"))[:40], r"a.json.gz: damaged archive"),
        ("a.json.gz", b"not packed at all", r"a.json.gz: damaged archive"),
        ("a.tar.gz", _tar("readme.md", b"hello"), r"no file in this archive ends in \.jsonl"),
        ("a.csv", b"story\n", r"unknown kind of file, expected a name in \.jsonl"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_or_changed_archive_is_not_read_as_complete(tmp_path: Path, mode: str) -> None:
    whole = _tar("stories.jsonl", _jsonl("story"), mode)
    path = tmp_path / ("a.tar.gz" if mode == "w:gz" else "a.tar")
    path.write_bytes(whole)
    assert texts(path) == STORIES
    if mode == "w":  # four blocks, a header and a file twice: at a header's begin, and in one
        damaged = [whole[:2048], whole[:1100], whole[:1024] + b"x" + whole[1025:]]
    else:  # before the checksum, and in it
        damaged = [whole[:-8], whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged archive"):
            texts(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        texts(tmp_path / "missing.json")
    with pytest.raises(DataError, match="no file in this directory"):
        texts(tmp_path)


@pytest.mark.parametrize("chunk", range(1, 40))
def test_an_array_cut_anywhere(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk)
    values: list[Any] = [*STORIES, 123456, -1.5e10, False, None, {"深": ["\u2028", "\\"]}, []]
    for content in (json.dumps(values), json.dumps(values, ensure_ascii=False, indent=2)):
        read = iter_json_array(io.BytesIO(content.encode()), "x")
        assert [element for _, element in read] == values


@pytest.mark.parametrize("chunk", range(1, 20))
@pytest.mark.parametrize("name", ["blank.txt", "marked.txt", "windows.txt", "mac.txt"])
def test_a_text_cut_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + FILES[name])
    whole = list(read_stories([tmp_path / name]))
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk)
    assert [story.text for story in whole] == STORIES
    assert list(read_stories([tmp_path / name])) == whole


@pytest.mark.parametrize("kind", ["array.json", "lines.jsonl", "plain.txt", "line.txt"])
def test_memory_does_not_grow(tmp_path: Path, kind: str) -> None:
    """Peak memory for a file of 40 MB is that of one of 4 MB."""
    story = "小兔子在花园里玩。" * 50

    def peak(count: int) -> int:
        path = tmp_path / f"{count}-{kind}"
        with path.open("w", encoding="utf-8") as file:
            if kind == "plain.txt":
                file.writelines(f"{story}{n}\n\n" for n in range(count))
            elif kind == "line.txt":
                file.write("<|endoftext|>".join(f"{story}{n}" for n in range(count)))
            elif kind == "lines.jsonl":
                file.writelines(json.dumps({"story": f"{story}{n}"}) + "\n" for n in range(count))
            else:
                file.write("[" + json.dumps(story))
                file.writelines("," + json.dumps(f"{story}{n}") for n in range(1, count))
                file.write("]")
        tracemalloc.start()
        assert sum(1 for _ in read_stories([path])) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.unlink()
        return most

    small, large = peak(1_500), peak(15_000)
    assert large < 1.2 * small + 100_000
