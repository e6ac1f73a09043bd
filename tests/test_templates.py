"""Stories told from templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyllama2c.data.readers import Story, read_stories
from pyllama2c.data.templates import Template
from pyllama2c.errors import DataError

TEXT = "{hero:小猫|小狗|小马}{很|}饿。{hero}吃{food~hero:鱼|骨头|草}，{food}{真香|没有了}。"


def test_what_is_chosen_stays_and_goes_together() -> None:
    template, random = Template(Story(TEXT, "")), Random(1)
    told = {template.tell(random) for _ in range(500)}
    assert told == {
        f"{hero}{very}饿。{hero}吃{food}，{food}{end}。"
        for hero, food in (("小猫", "鱼"), ("小狗", "骨头"), ("小马", "草"))
        for very in ("很", "")
        for end in ("真香", "没有了")
    }


def test_a_story_without_slots_is_itself() -> None:
    assert Template(Story("从前：|~", "")).tell(Random(1)) == "从前：|~"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("从前{a|b", "a brace without its partner"),
        ("a|b}", "a brace without its partner"),
        ("{a{b|c}d}", "a brace without its partner"),
        ("{}", "expected a name chosen before"),
        ("{hero}{hero:a|b}", "expected a name chosen before"),
        ("{hero:a}", "alternatives with | between them"),
        ("{hero:a|b}{hero:c|d}", "hero was chosen before"),
        ("{food~hero:a|b}", "hero is not chosen yet"),
        ("{hero:a|b}{food~hero:a|b|c}", "3 alternatives, but hero has 2"),
        ("\ud83d", "unpaired surrogate"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    with pytest.raises(DataError, match=r"^t\.jsonl:7: ") as error:
        Template(Story(text, "t.jsonl:7"))
    assert problem in str(error.value)


def test_the_templates_of_the_corpus() -> None:
    corpus = Path(__file__).resolve().parents[1] / "corpus" / "templates.jsonl"
    if not corpus.exists():
        pytest.skip("no corpus/ beside the tests")
    for story in read_stories([corpus], "template"):
        template = Template(story)
        told = [template.tell(Random(seed)) for seed in range(30)]
        assert len(set(told)) > 20, story.where
        assert not set("{}|~:") & set("".join(told)), story.where
        assert max(map(len, told)) < 350, story.where  # what fits a context of 256 tokens


def test_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    rows = [{"template": TEXT}, {"template": "{a|b|c|d}"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for out in ("one.jsonl", "two.jsonl"):
        result = cli("data", "expand", source, "-o", tmp_path / out, "--copies", 100)
        assert (result.status, result.stdout) == (0, f"{tmp_path / out}: 200 stories\n")
    one = (tmp_path / "one.jsonl").read_bytes()
    assert one == (tmp_path / "two.jsonl").read_bytes()
    stories = [json.loads(line)["story"] for line in one.splitlines()]
    assert sum(story in {"a", "b", "c", "d"} for story in stories) == 100
    assert len(set(stories)) == 12 + 4
    source.write_text('{"template": "{a|b"}\n')
    result = cli("data", "expand", source, "-o", tmp_path / "one.jsonl")
    assert result.status == 2
    assert "t.jsonl:1: a brace without its partner" in result.stderr
    assert (tmp_path / "one.jsonl").read_bytes() == one
