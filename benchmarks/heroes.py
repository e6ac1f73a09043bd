"""How often heroes stay: is the one whom a story begins with still there in its second half?

A story's hero is the first name of `corpus/names.txt`, animal or other figure in it. The stories
that a model tells, with seeds from 0 on, stand beside those of the corpus.

    python benchmarks/heroes.py                       # the default model
    python benchmarks/heroes.py --model model.bin --temperature 1
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from machine import report

from pyllama2c import Model, SamplingParams

CORPUS = Path(__file__).parent.parent / "corpus"
FIGURES = (
    "兔|熊猫|熊|猫|狗|鸟|鸡|鸭|鹅|猪|"
    "羊|牛|马|鱼|虫|龟|蛙|蛇|鼠|猴|"
    "象|狮|虎|狼|狐狸|刺猬|蜗牛|蚂蚁|蜜蜂|蝴蝶|"
    "蜻蜓|鹿|驴|麻雀|燕子|企鹅|螃蟹|蝌蚪|河马|鳄鱼|"
    "河狸|獾|女孩|男孩|爷爷|奶奶|国王|公主|王子|树|"
    "草|花|雨滴|云|雪人|船|风筝|星星|月亮|太阳"
)


def main() -> None:
    """Print one JSON line for the corpus and one for the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[default: the one that comes with the package]")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    count = 8 if args.smoke else args.stories

    lines = (CORPUS / "tonghua.jsonl").read_text(encoding="utf-8").splitlines()
    show("corpus", (json.loads(line)["story"] for line in lines))
    params = [SamplingParams(temperature=args.temperature, seed=seed) for seed in range(count)]
    with Model(args.model) as model:
        told = model.generate([""] * count, params)
        show(model.path.name, (completion.text for completion in told))


def show(source: str, stories: Iterable[str]) -> None:
    """Print how many stories have a hero, and in how many of those he stays."""
    names = [line.split()[0] for line in (CORPUS / "names.txt").read_text("utf-8").splitlines()]
    hero = re.compile("|".join([*names, FIGURES]))
    stays = []
    for story in stories:
        sentences = re.split("(?<=[。！？])", story)
        if found := hero.search(story):
            stays.append(found[0] in "".join(sentences[len(sentences) // 2 :]))
    report(benchmark="heroes", source=source, stories=len(stays), stay=sum(stays) / len(stays))


if __name__ == "__main__":
    main()
