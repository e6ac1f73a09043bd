"""Merging, deduplicating and splitting a corpus, and the exchange of names in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyllama2c.data.augment import Names, augment
from pyllama2c.data.prepare import prepare
from pyllama2c.data.readers import Story, read_stories
from pyllama2c.errors import ArgumentError, DataError


def write(path: Path, stories: list[str]) -> Path:
    path.write_text("".join(json.dumps({"story": s}) + "\n" for s in stories))
    return path


def read(*paths: Path) -> list[str]:
    return [story.text for story in read_stories(paths)]


def test_report(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", ["小兔子。", " 小兔子。\n", "", "The cat"])
    two = write(tmp_path / "two.jsonl", ["The cat", "A dog", "   "])
    report = prepare([one, two], tmp_path / "out", validation=0)
    assert (report.stories, report.duplicates, report.empty) == (3, 2, 2)
    assert (report.train_stories, report.validation_stories) == (3, 0)
    assert read(tmp_path / "out" / "train.jsonl") == ["小兔子。", "The cat", "A dog"]
    assert report.characters == 4 + 7 + 5
    assert report.distinct_characters == len(set("小兔子。The catA dog"))
    assert report.distinct_hanzi == 3
    assert (report.length_min, report.length_median, report.length_max) == (4, 5, 7)
    assert report.length_mean == pytest.approx(16 / 3)
    assert sum(count for _, _, count in report.length_histogram) == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["duplicates"] == 2


def test_the_split_depends_on_the_stories_alone(tmp_path: Path) -> None:
    stories = [f"Story number {n}." for n in range(2000)]

    def held_out(name: str, stories: list[str], **options: Any) -> set[str]:
        source = write(tmp_path / f"{name}.jsonl", stories)
        prepare([source], tmp_path / name, validation=0.05, **options)
        parts = [set(read(tmp_path / name / f"{part}.jsonl")) for part in ("train", "validation")]
        assert parts[0].isdisjoint(parts[1])
        assert parts[0] | parts[1] == set(stories)
        return parts[1]

    first = held_out("first", stories)
    assert 60 < len(first) < 140
    assert held_out("reversed", stories[::-1]) == first
    assert held_out("half", stories[:1000]) == {s for s in first if s in set(stories[:1000])}
    assert held_out("seed", stories, seed=1) != first


def test_same_bytes_every_time(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [f"Story {n}" for n in range(300)])
    for out in ("one", "two"):
        prepare([source], tmp_path / out, validation=0.1)
    for name in ("train.jsonl", "validation.jsonl", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["", " "])
    with pytest.raises(ArgumentError, match="validation is 1"):
        prepare([source], tmp_path / "out", validation=1)
    with pytest.raises(DataError, match="no story in any of the sources"):
        prepare([source], tmp_path / "out")
    source.write_text('{"story": "half a pair \\ud83d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: the story holds an unpaired surrogate"):
        prepare([source], tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.jsonl:1: the story holds an unpaired surrogate"):
        augment(read_stories([source]), Names(("a", "b"), ()), tmp_path / "b.jsonl", copies=1)
    assert list(tmp_path.iterdir()) == [source]  # complete or not there at all
    for out in (source, source / "out"):
        with pytest.raises(ArgumentError, match=r"out needs the directory .*a\.jsonl' is a file"):
            prepare([tmp_path / "b.jsonl"], out)


def test_no_source_is_replaced(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", ["one", "two"])
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for sources in ([source], [tmp_path], [tmp_path / "link"]):
        with pytest.raises(ArgumentError, match=r"train\.jsonl': it would .* the source"):
            prepare(sources, tmp_path)
    with pytest.raises(ArgumentError, match="it would become part of the source"):
        prepare([tmp_path], tmp_path / "out")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    result = cli("data", "augment", source, "-o", source, "--names", tmp_path / "names.txt")
    assert "it would replace the source" in result.stderr
    assert source.read_bytes() == before
    model = tmp_path / "tokenizer.model"
    for name, command in (
        ("a.npy.json", ("data", "tokenize", "-z", model, "-o", tmp_path / "a.npy")),
        ("tokenizer.json", ("tokenizer", "train", "-o", tmp_path, "--vocab-size", 300)),
    ):
        before = write(tmp_path / name, ["one", "two"]).read_bytes()
        result = cli(*command, tmp_path / name)
        assert result.status == 2
        assert "it would replace the source" in result.stderr
        assert (tmp_path / name).read_bytes() == before


def test_the_held_out_stories_of_the_default_model(tmp_path: Path) -> None:
    """The model card's command gives these 140 stories for ever, or its losses mean nothing."""
    corpus = Path(__file__).resolve().parents[1] / "corpus" / "tonghua.jsonl"
    if not corpus.exists():
        pytest.skip("no corpus/ beside the tests")
    report = prepare([corpus], tmp_path, validation=0.05)
    assert (report.train_stories, report.validation_stories) == (2681, 140)
    held_out = read(tmp_path / "validation.jsonl")
    assert sum(map(len, held_out)) == 36990
    assert held_out[0].startswith("从前，有一只小猪，名叫球球，")


def test_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["小明和小红。", "小明和小红。", "", "B"])
    result = cli("data", "prepare", source, "-o", tmp_path / "out", "--validation", 0)
    assert result.status == 0
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in
            result.stdout.splitlines()[:7]}  # fmt: skip
    assert rows == {
        "stories": "2", "to train on": "2", "held out": "0", "duplicates dropped": "1",
        "empty ones dropped": "1", "characters": "7", "distinct": "6",
    }  # fmt: skip
    (tmp_path / "names.txt").write_text("小明\n小红\n")
    out = tmp_path / "more" / "stories.jsonl"
    result = cli("data", "augment", source, "-o", out, "--names", tmp_path / "names.txt",
                 "--copies", 3)  # fmt: skip
    assert (result.status, result.stdout) == (0, f"{out}: 12 stories\n")
    assert set(read(out)) <= {"小明和小红。", "小红和小明。", "", "B"}


# ---- names ---------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path: Path) -> Names:
    path = tmp_path / "names.txt"
    path.write_text("莉莉\n小明\n安安 安安静静\n\n小红 小红花 小红旗\n汤姆\n", encoding="utf-8")
    return Names.read(path)


def test_names_are_exchanged_consistently(names: Names) -> None:
    text = "小红和莉莉安安静静地看着小红花。小红说：莉莉，安安在哪里？"
    seen = set()
    for seed in range(50):
        swapped = names.swap(text, Random(seed))
        red, lily, quiet = swapped[0:2], swapped[3:5], swapped[-6:-4]
        assert len({red, lily, quiet}) == 3
        assert {red, lily, quiet} <= set(names.names)
        wanted = f"{red}和{lily}安安静静地看着小红花。{red}说：{lily}，{quiet}在哪里？"
        assert swapped == wanted
        seen.add((red, lily))
    assert len(seen) > 10


def test_copies(names: Names, tmp_path: Path) -> None:
    stories = [Story(f"{n}莉莉。", "") for n in range(50)]
    for out in ("one", "two"):
        assert augment(stories, names, tmp_path / f"{out}.jsonl", copies=4, seed=7) == 200
    one, two = ((tmp_path / f"{out}.jsonl").read_bytes() for out in ("one", "two"))
    assert one == two
    texts = read(tmp_path / "one.jsonl")
    orders = [[int(text[:-3]) for text in texts[i : i + 50]] for i in range(0, 200, 50)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    augment(stories, names, tmp_path / "other.jsonl", copies=4, seed=8)
    assert (tmp_path / "other.jsonl").read_bytes() != one


def test_names_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("莉莉\n莉莉\n")
    with pytest.raises(DataError, match="expected at least two names"):
        Names.read(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("莉莉\n小明\n", encoding="utf-8-sig")
    assert Names.read(tmp_path / "names.txt").names == ("莉莉", "小明")
    (tmp_path / "names.txt").write_text("莉莉\n小明\n", encoding="gbk")
    with pytest.raises(DataError, match=r"names\.txt: not UTF-8"):
        Names.read(tmp_path / "names.txt")
