"""A corpus made of templates and a model small enough to train on it within a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pyllama2c.config import ModelConfig
from pyllama2c.data.readers import Story
from pyllama2c.data.tokenize import tokenize
from pyllama2c.data.tokenizer import TokenizerConfig, train_tokenizer, write_tokenizer
from pyllama2c.train.config import DataConfig, RunConfig, TrainConfig
from pyllama2c.train.metrics import read_metrics

VOCAB_SIZE = 400
# Grouped-query attention, and a hidden size that no group of int8 weights divides.
MODEL = ModelConfig(32, 76, 2, 4, 2, VOCAB_SIZE, 64)


def stories(count: int, seed: int = 0) -> list[Story]:
    """Stories of one plot with changing heroes."""
    random = Random(seed)
    heroes, names = ["小兔子", "小猪", "小猫", "小熊"], ["莉莉", "球球", "米米", "汤姆"]
    things, places = ["红气球", "苹果", "小花"], ["花园里", "河边", "山上"]
    made = []
    for number in range(count):
        hero, name, thing, place = map(random.choice, (heroes, names, things, places))
        made.append(
            Story(
                f"从前，有一只{hero}，名叫{name}。{name}在{place}找到了{thing}。\n"
                f"“这是谁的{thing}？”{name}问。{name}把{thing}带回家，妈妈笑了。",
                f"story {number}",
            )
        )
    return made


def make_data(folder: Path) -> DataConfig:
    """Write a tokenizer and token files into ``folder``."""
    texts = stories(300)
    write_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=VOCAB_SIZE)), folder)
    files = {"train": texts, "validation": stories(20, seed=1)}
    for name, part in files.items():
        tokenize(part, folder / "tokenizer.model", folder / f"{name}.npy", jobs=1)
    return DataConfig(
        train=str(folder / "train.npy"),
        validation=str(folder / "validation.npy"),
        tokenizer=str(folder / "tokenizer.model"),
        windows="stories",
    )


def make_run(data: DataConfig, model: ModelConfig = MODEL, **settings: Any) -> RunConfig:
    """A run of a few steps, on one thread of the CPU in float32, with dropout."""
    train = TrainConfig(
        batch_size=4,
        max_steps=12,
        learning_rate=1e-2,
        warmup_steps=2,
        dropout=0.1,
        eval_interval=6,
        eval_batches=2,
        log_interval=1,
        sample_tokens=0,
        device="cpu",
        compile=False,
        threads=1,
    )
    return RunConfig(model, data, replace(train, **settings))


def curve(run: Path) -> list[dict[str, float]]:
    """The records of a run without what the clock decides."""
    clock = ("tokens_per_s", "mfu")
    records = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]
