"""A run that is killed again and again ends as one that nobody touched, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from training import curve, make_data, make_run

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="training needs safetensors")
pytest.importorskip("matplotlib", reason="training draws its losses with matplotlib")

SEED = random.SystemRandom().randrange(1 << 32)

# Imports once, and then runs every attempt in a child of its own, which it kills: one in four at
# some moment of its first half second, the others some steps further on than the last. Counting
# steps and not seconds, it meets training and checkpoints on any machine. Prints how many it had to
# kill, and how many of those had come to a checkpoint.
KILLER = """
import os, random, signal, sys, time
import matplotlib.figure, torch
from pyllama2c.train.config import load_config
from pyllama2c.train.trainer import train

config, out, chance = load_config(sys.argv[1]), sys.argv[2], random.Random(int(sys.argv[3]))

def records():
    try:
        with open(out + "/metrics.jsonl", "rb") as file:
            return file.read().count(b"\\n")
    except FileNotFoundError:
        return 0

kills = resumed = goal = 0
while True:
    resumed += os.path.exists(out + "/last")
    child = os.fork()
    if child == 0:
        train(config, out, resume=True)
        os._exit(0)
    early = chance.random() < 0.25
    goal = 0 if early else max(goal, records()) + chance.randint(3, 10)
    moment = time.monotonic() + chance.uniform(0, 0.5) if early else None
    while moment is None or time.monotonic() < moment:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            print(kills, resumed)
            sys.exit(0 if status == 0 else 1)
        if moment is None and records() >= goal:
            moment = time.monotonic() + chance.uniform(0, 0.01)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    config = make_run(
        make_data(tmp_path), max_steps=60, eval_interval=20, checkpoint_interval=3, eval_batches=1
    )
    (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")

    def run(code: str, out: str, *arguments: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "run.toml"), str(tmp_path / out)]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    untouched = "import sys\nfrom pyllama2c.train.config import load_config\n"
    untouched += "from pyllama2c.train.trainer import train\n"
    run(untouched + "train(load_config(sys.argv[1]), sys.argv[2])", "whole")
    kills, resumed = map(int, run(KILLER, "killed", str(SEED)).split())
    print(f"{kills} kills, {resumed} resumed")
    assert kills >= 3, f"only {kills} kills with the seed {SEED}"
    assert resumed >= 2, f"only {resumed} resumed with the seed {SEED}"
    for step, pair in enumerate(zip(*map(curve, _runs(tmp_path)), strict=True)):
        assert pair[0] == pair[1], f"record {step} differs with the seed {SEED}"
    for name in ("last", "best"):
        whole, killed = (run / name for run in _runs(tmp_path))
        assert whole.resolve().name == killed.resolve().name
        assert (whole / "model.safetensors").read_bytes() == (
            killed / "model.safetensors"
        ).read_bytes()


def _runs(folder: Path) -> tuple[Path, Path]:
    return folder / "whole", folder / "killed"


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Torchrun with gloo on the CPU against gradient accumulation in one process."""
    config = make_run(make_data(tmp_path), max_steps=8, eval_interval=4)
    for name, passes in (("one", 2), ("two", 1)):
        settings = dataclasses.replace(config.train, grad_accumulation=passes)
        text = dataclasses.replace(config, train=settings).to_toml()
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [sys.executable, *launcher, "-m", "pyllama2c", "train"]
        done = subprocess.run(
            [*command, str(tmp_path / f"{name}.toml"), "-o", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("8 steps, validation loss") == 1  # one process speaks
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == pytest.approx(value, rel=1e-4), f"{key} at step {a['step']}"
