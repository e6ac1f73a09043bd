"""A village of 200 talking animals: a game server in one file.

    pip install '.[examples]'                       # in the root of the repository
    python examples/village.py                      # serve the village
    python examples/village.py --visit 小兔莉莉      # and walk into it, from another terminal

A player is a WebSocket connection and sends JSON: ``{"to": name, "say": text}``. He hears
``{"village": [names]}`` when he arrives, then what the villagers say, piece by piece:
``{"from": name, "text": piece}``, and at the end of a line ``{"from": name, "end": reason, "line":
text}`` with what counts as said: a line that took too long ends with its last whole sentence. Or
``{"from": name, "busy": true}`` from one who is talking to somebody else. What a villager says to
himself comes in one piece, with ``"aside": true``; what cannot be read is answered with
``{"error": reason}``.

All villagers share the keys and values of the world they live in. Players are answered before
villagers talk to themselves, and within two seconds. A player who leaves in the middle of an
answer frees what it took at once. With ``--save FILE`` the village remembers: stopped and started
again, it goes on with the very next word.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from pyllama2c import AsyncEngine, AsyncSession, BusyError, Model, Overloaded, SamplingParams

WORLD = "从前，森林边上有一个小村子，村子里住着许多小动物，大家都很友好。"
KINDS = "兔猫狗熊鹿羊鸭象猴鼠"
NAMES = [2 * first for first in "莉团朵乐豆圆毛丁花米安贝多果静可明奇天星"]
ANSWER_MS = 2000
MOST_CHARACTERS = 200  # of what a player says at once
BUSY = "（正在和别人说话）"  # what a visitor sees of a villager who is
SAYING = SamplingParams(stop=["”", "\n"], max_tokens=40, temperature=0.7)


class Village:
    """The villagers, and the players who are visiting."""

    def __init__(self, engine: AsyncEngine, saved: dict[str, str]) -> None:
        world = engine.prefix(WORLD)
        self.villagers: dict[str, AsyncSession] = {}
        for i, (kind, name) in enumerate(product(KINDS, NAMES)):
            who = f"小{kind}{name}"
            if who in saved:
                self.villagers[who] = engine.restore(base64.b64decode(saved[who]))
            else:
                persona = world.extend(f"村子里有一只小{kind}，名叫{name}。")
                self.villagers[who] = engine.session(
                    who, prefix=persona, overflow="slide", params=SAYING, seed=i
                )
        self.players: set[ServerConnection] = set()
        self.musing: AsyncSession | None = None  # who is talking to himself

    def save(self) -> dict[str, str]:
        """Everybody's memory, a few hundred bytes each."""
        return {
            who: base64.b64encode(villager.save()).decode()
            for who, villager in self.villagers.items()
        }

    async def welcome(self, player: ServerConnection) -> None:
        """Serve one player until he leaves."""
        self.players.add(player)
        try:
            await player.send(_json(village=list(self.villagers)))
            async for message in player:
                try:
                    heard = json.loads(message)
                    who, text = heard["to"], str(heard["say"])[:MOST_CHARACTERS]
                    text.encode()  # half a surrogate pair is no text
                    villager = self.villagers[who]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    await player.send(_json(error=f"{type(error).__name__}: {error}"))
                    continue
                await self.answer(player, villager, text)
        except ConnectionClosed:
            pass
        finally:
            self.players.discard(player)

    async def answer(self, player: ServerConnection, villager: AsyncSession, text: str) -> None:
        """Let a villager answer a player."""
        name = villager.name[2:]
        line = f"一天，小明走过来说：“{text}”\n{name}说：“"
        if self.musing is villager:
            self.musing = None
            villager.cancel()  # what he has said to himself so far he remembers
        try:
            speech = villager.stream(
                _after(villager, line),
                priority=1,
                deadline_ms=ANSWER_MS,
                on_deadline="我要想一想。",
            )
        except (BusyError, Overloaded):
            await player.send(_json(**{"from": villager.name, "busy": True}))
            return
        async with speech:  # however the player leaves, the villager stops talking
            async for chunk in speech:
                if chunk.text:
                    await player.send(_json(**{"from": villager.name, "text": chunk.text}))
        reason = speech.completion.finish_reason if speech.completion else "cancelled"
        await player.send(_json(**{"from": villager.name, "end": reason, "line": speech.text}))

    async def live(self, pause: float) -> None:
        """Villagers talk to themselves now and then; whoever is near hears it."""
        while True:
            await asyncio.sleep(pause)
            villager = random.choice(list(self.villagers.values()))
            line = f"{villager.name[2:]}想了想，说：“"
            self.musing = villager
            try:
                said = await villager.send(_after(villager, line), priority=-1)
            except (BusyError, Overloaded):
                continue
            finally:
                self.musing = None
            aside = _json(**{"from": villager.name, "text": said.text, "aside": True})
            for player in list(self.players):
                with contextlib.suppress(ConnectionClosed):
                    await player.send(aside)


def _after(villager: AsyncSession, line: str) -> str:
    """What is said next; a villager's last words have lost their closing quote to `stop`."""
    return f"”\n{line}" if villager.history or villager.unfinished else line


def _json(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


async def run_server(
    model: Path | None, port: int, save: Path | None = None, pause: float = 1.0
) -> None:
    """Serve until cancelled or terminated; then let everybody remember."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    async with village(model, port, save, pause) as (_, address):
        print(f"the village is at {address}", flush=True)
        await terminated.wait()


@contextlib.asynccontextmanager
async def village(
    model: Path | None = None, port: int = 0, save: Path | None = None, pause: float = 1.0
) -> AsyncIterator[tuple[Village, str]]:
    """A village that is open to players, and its address."""
    saved = json.loads(save.read_text()) if save and save.exists() else {}
    async with AsyncEngine(Model(model), kv_memory="256MiB", max_waiting=200) as engine:
        here = Village(engine, saved)
        async with serve(here.welcome, "localhost", port) as server:
            life = asyncio.create_task(here.live(pause))
            try:
                yield here, f"ws://localhost:{server.sockets[0].getsockname()[1]}"
            finally:
                life.cancel()
                if save:
                    written = save.with_name(save.name + ".new")
                    written.write_text(_json(**here.save()))
                    written.replace(save)


async def visit(address: str, who: str, lines: list[str]) -> list[str]:
    """A player: say some lines to a villager and return the answers."""
    answers = []
    async with connect(address) as village:
        json.loads(await village.recv())
        for line in lines:
            await village.send(_json(to=who, say=line))
            answer = ""
            async for message in village:
                heard = json.loads(message)
                if "text" in heard:
                    continue
                answer = BUSY if "busy" in heard else heard.get("line", heard.get("error", ""))
                break
            answers.append(answer)
    return answers


async def walk_in(address: str, who: str) -> None:
    """A player on the terminal."""
    while line := await asyncio.to_thread(input, "你说："):
        (answer,) = await visit(address, who, [line])
        print(f"{who}：{answer}")


def main() -> None:
    """Serve the village, or visit it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[default: the one that comes with pyllama2c]")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--save", type=Path, help="remember the village here")
    parser.add_argument("--visit", metavar="WHO", help="talk to a villager instead of serving")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        if args.visit:
            asyncio.run(walk_in(f"ws://localhost:{args.port}", args.visit))
        else:
            asyncio.run(run_server(args.model, args.port, args.save))


if __name__ == "__main__":
    main()
