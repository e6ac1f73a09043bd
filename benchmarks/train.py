"""How fast a model is trained, beside a plain PyTorch loop of the same model.

Steps of ours (`pyllama2c.train.trainer`) and of the plain loop (plain_training.py) take turns in
one process, on the same tokens and threads, both compiled by torch.compile or both not. Then ten
steps of the reference shape at a reduced batch. float32 on the CPU.

    python benchmarks/train.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu_name, report
from plain_training import PlainLoop

from pyllama2c.data.tokens import TokenInfo, open_tokens, sha256, write_tokens
from pyllama2c.train.config import RunConfig, load_config
from pyllama2c.train.device import open_device
from pyllama2c.train.trainer import Trainer

BOS = 1


def main() -> None:
    """Print one JSON line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tonghua-3m", help="compared with the plain loop")
    parser.add_argument("--reference", default="tinystories-zh-93m", help="measured alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="sequences, of --config")
    parser.add_argument("--steps", type=int, default=5, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    compare, alone = args.config, args.reference
    compiled, reference_steps = [False, True], 10
    if args.smoke:
        compare = alone = "stories-260k"
        args.batch, args.steps, args.rounds, compiled, reference_steps = 1, 1, 1, [False], 2

    with tempfile.TemporaryDirectory() as folder:
        for each in compiled:
            config = make_run(Path(folder), compare, args.batch, args.threads, each)
            versus_plain(config, compare, args.steps, args.rounds)
        config = make_run(Path(folder), alone, 1, args.threads, compiled=False)
        take_steps(config, alone, reference_steps)


def make_run(folder: Path, name: str, batch: int, threads: int, compiled: bool) -> RunConfig:
    """A built-in configuration with random tokens to train on."""
    config = load_config(name)
    size = config.model.vocab_size
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(b"stands for a tokenizer")
    story = np.random.default_rng(0).integers(3, size, 100_000).astype(np.uint16)
    story[::200] = BOS
    np.save(folder / "part.npy", story)
    info = TokenInfo(size, BOS, len(story), len(story) // 200, len(story), sha256(tokenizer))
    tokens = folder / f"{name}.npy"
    write_tokens(tokens, [folder / "part.npy"], info)
    data = replace(config.data, train=str(tokens), validation=str(tokens), tokenizer=str(tokenizer))
    settings = replace(
        config.train,
        batch_size=batch,
        grad_accumulation=1,
        attention_dropout=0.0,  # the plain loop has none
        device="cpu",
        dtype="float32",
        compile=compiled,
        threads=threads,
    )
    return replace(config, data=data, train=settings)


def versus_plain(config: RunConfig, name: str, steps: int, rounds: int) -> None:
    """Let both take turns; report the medians of the steps' times."""
    settings = config.train
    ours = Trainer(config, Path("not written"), open_device(settings), progress=False)
    ours.model.train()
    stream, _ = open_tokens(config.data.train)
    plain = PlainLoop(config.model, settings, np.asarray(stream), settings.compile)
    assert ours.model.n_parameters() == sum(p.numel() for p in plain.model.parameters())
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for take_step in (ours.take_step, plain.take_step):
        timed(take_step, 2)  # memory is fetched, compiling ends
    for _ in range(rounds):
        times["ours"] += timed(ours.take_step, steps)
        times["plain"] += timed(plain.take_step, steps)
    tokens = settings.batch_size * config.model.max_seq_len
    speeds = {which: tokens / statistics.median(seconds) for which, seconds in times.items()}
    report(
        benchmark="train",
        config=name,
        parameters=ours.model.n_parameters(),
        batch=settings.batch_size,
        dtype=settings.dtype,
        compiled=settings.compile,
        threads=settings.threads,
        tokens_per_s=speeds["ours"],
        plain_tokens_per_s=speeds["plain"],
        ratio=speeds["ours"] / speeds["plain"],
        torch=torch.__version__,
        cpu=cpu_name(),
    )


def take_steps(config: RunConfig, name: str, steps: int) -> None:
    """Take real steps of one configuration, at a batch of one sequence."""
    trainer = Trainer(config, Path("not written"), open_device(config.train), progress=False)
    trainer.model.train()
    losses: list[float] = []
    seconds = timed(lambda: losses.append(float(trainer.take_step()[0])), steps)
    tokens = config.train.batch_size * config.model.max_seq_len
    report(
        benchmark="train alone",
        config=name,
        parameters=trainer.model.n_parameters(),
        batch=config.train.batch_size,
        dtype=config.train.dtype,
        threads=config.train.threads,
        steps=steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        tokens_per_s=tokens / statistics.median(seconds),
        torch=torch.__version__,
        cpu=cpu_name(),
    )


def timed(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of some calls."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
