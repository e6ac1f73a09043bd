"""examples/village.py: bots walk in, talk, leave in mid-sentence, and come back the next day."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import engine_helpers as helpers
import pytest

connect = pytest.importorskip("websockets.asyncio.client").connect

VILLAGE = Path(__file__).parent.parent / "examples" / "village.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    if not VILLAGE.exists():
        pytest.skip("the examples are not here")
    spec = importlib.util.spec_from_file_location("village", VILLAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["village"] = module
    spec.loader.exec_module(module)
    module.ANSWER_MS = 60_000  # the machine may be busy
    return module


def test_many_players_are_answered(example: ModuleType) -> None:
    async def main() -> None:
        async with example.village(pause=0.01) as (village, address):
            assert len(village.villagers) == 200
            names = list(village.villagers)[:20]
            answers = await asyncio.gather(
                *(example.visit(address, name, ["你好！", "你在做什么？"]) for name in names)
            )
            for name, (first, second) in zip(names, answers, strict=True):
                assert example.BUSY not in (first, second)  # nobody else had talked to him
                assert first in village.villagers[name].text
                assert second in village.villagers[name].text
            stats = village.villagers[names[0]]._engine.stats()
            assert stats.prefix_hit_rate > 0.3  # they live in one world

    asyncio.run(main())


def test_what_a_villager_says_does_not_depend_on_the_others(example: ModuleType) -> None:
    lines = ["你好！", "我们去玩吧！", "再见！"]

    async def talk(n_others: int) -> list[str]:
        async with example.village(pause=1000) as (village, address):
            names = list(village.villagers)
            others = [example.visit(address, name, lines) for name in names[1 : n_others + 1]]
            mine, *_ = await asyncio.gather(example.visit(address, names[0], lines), *others)
            return mine

    alone, together = asyncio.run(talk(0)), asyncio.run(talk(15))
    assert alone == together
    assert all(alone)


def test_a_line_that_takes_too_long_is_told_as_it_is_remembered(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "ANSWER_MS", 0)

    async def main() -> None:
        async with example.village(pause=1000) as (village, address):
            (answer,) = await example.visit(address, "小兔莉莉", ["你好！"])
            assert answer == village.villagers["小兔莉莉"].history[-1].answer == "我要想一想。"

    asyncio.run(main())


def test_players_may_leave_in_mid_sentence(example: ModuleType) -> None:
    async def main() -> None:
        async with example.village(pause=1000) as (village, address):
            names = random.Random(1).sample(list(village.villagers), 20)
            for name in names:
                async with connect(address) as player:
                    await player.recv()
                    await player.send(json.dumps({"to": name, "say": "你好！"}))
                    if name != names[0]:
                        await player.recv()  # a piece of the answer
            for _ in range(1000):
                if not any(villager.busy for villager in village.villagers.values()):
                    break
                await asyncio.sleep(0.01)
            helpers.expect_nothing_held(village.villagers[names[0]]._engine)

    asyncio.run(main())


def test_nonsense_is_answered_with_an_error(example: ModuleType) -> None:
    async def main() -> None:
        async with example.village(pause=1000) as (village, address), connect(address) as player:
            assert len(json.loads(await player.recv())["village"]) == 200
            name = next(iter(village.villagers))
            half = json.dumps({"to": name, "say": "\ud800"})
            nonsense = ("", "[]", "{}", '{"to": "nobody", "say": "x"}', '{"to": 5}', b"\xff", half)
            for message in (*nonsense, "[" * 100_000):
                await player.send(message)
                assert "error" in json.loads(await player.recv())
            await player.send(json.dumps({"to": name, "say": "你好！"}))
            assert json.loads(await player.recv())["from"] == name

    asyncio.run(main())


def test_the_village_remembers(example: ModuleType, tmp_path: Path) -> None:
    lines = ["你好！", "你在做什么？", "我们一起去玩吧！", "再见！"]

    async def day(save: Path | None, said: list[str]) -> list[str]:
        async with example.village(save=save, pause=1000) as (_, address):
            return await example.visit(address, "小兔莉莉", said)

    save = tmp_path / "village"
    in_two_days = asyncio.run(day(save, lines[:2])) + asyncio.run(day(save, lines[2:]))
    assert in_two_days == asyncio.run(day(None, lines))
    assert save.stat().st_size < 200 * 1000


def test_the_village_remembers_when_it_is_terminated(tmp_path: Path) -> None:
    if not VILLAGE.exists():
        pytest.skip("the examples are not here")
    save = tmp_path / "village"
    command = [sys.executable, str(VILLAGE), "--port", "0", "--save", str(save)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert "the village is at" in server.stdout.readline()
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["village"]
    assert json.loads(save.read_text())
