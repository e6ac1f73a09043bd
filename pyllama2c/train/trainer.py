"""The training loop."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pyllama2c.data.files import atomic_write
from pyllama2c.errors import ArgumentError, CheckpointError, Pyllama2cError
from pyllama2c.train.batches import IGNORED, open_windows
from pyllama2c.train.checkpoint import load_checkpoint, save_checkpoint
from pyllama2c.train.config import RunConfig, TrainConfig
from pyllama2c.train.device import Device, close_device, open_device
from pyllama2c.train.metrics import Metrics
from pyllama2c.train.model import Llama
from pyllama2c.train.sample import sample_text


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    steps: int
    val_loss: float
    best_val_loss: float
    run: Path


def train(
    config: RunConfig, out: str | Path, *, resume: bool = False, progress: bool = False
) -> Result:
    """Train a model, or go on training it.

    Leaves in ``out``: ``config.toml``, checkpoints (see `checkpoint`), ``metrics.jsonl``,
    ``loss.png`` and ``samples.txt``. A run that was interrupted or killed at any moment and is
    resumed takes the very same steps as one that was not (bit for bit on the CPU, in float32 and
    without ``compile``).

    Args:
        config: what to do.
        out: the directory of the run.
        resume: go on from ``out/last``, or from the beginning if there is no checkpoint yet.
        progress: show a progress bar and the samples on stderr.

    Raises:
        ArgumentError: ``out`` holds a run and ``resume`` is not set; the device is not there.
        DataError: the token files do not fit the configuration.
        CheckpointError: the checkpoint to resume from does not fit it.
    """
    out = Path(out)
    if (out / "last").exists() and not resume:
        raise ArgumentError(f"{out} holds a run already; resume it or choose another directory")
    device = open_device(config.train)
    try:
        return Trainer(config, out, device, progress).run()
    finally:
        close_device(device)


class Trainer:
    """A run that can be taken step by step; `train` takes all of them.

    Args:
        config: what to do.
        out: the directory of the run, whose ``last`` checkpoint is gone on from if it is there.
        device: where, see `open_device`.
        progress: see `train`.
    """

    def __init__(self, config: RunConfig, out: Path, device: Device, progress: bool) -> None:
        self.config = config
        self.settings = config.train
        self.out = out
        self.device = device
        self.progress = progress and device.is_main
        self.train_data, self.val_data, self.tokens_per_character = open_windows(config)
        torch.manual_seed(self.settings.seed)
        self.model = Llama(config.model, self.settings.dropout, self.settings.attention_dropout).to(
            device.device
        )
        self.optimizer = make_optimizer(self.model, self.settings)
        self.scaler = torch.amp.GradScaler(
            device.device.type, enabled=device.dtype == torch.float16
        )
        self.step = 0
        self.best_val_loss = math.inf
        self.val_loss = math.inf
        if (out / "last").exists():
            self.load(out / "last")
        step = torch.tensor(self.step, dtype=torch.float64, device=device.device)
        if device.mean(step) != self.step:
            raise CheckpointError(
                f"{out}/last is of step {self.step} here, but not in the other processes of the "
                "run: every machine has to see the same directory"
            )
        self.forward = self.prepared_model()

    # ---- state ---------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        weights, state = load_checkpoint(path, self.config.model, Path(self.config.data.tokenizer))
        # The optimizer's state brings the settings of the run so far; those of this one count.
        settings = [
            {key: group[key] for key in ("betas", "weight_decay")}
            for group in self.optimizer.param_groups
        ]
        try:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # none of a run so far in another dtype than float16
                self.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]
            self.val_loss = state["val_loss"]
            self.best_val_loss = state["best_val_loss"]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a training checkpoint ({error!r:.200})") from error
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def save(self, val_loss: float | None = None, *, best: bool = False) -> None:
        """Write a checkpoint; ``val_loss`` is that of these very weights, if it is known."""
        if not self.device.is_main:
            return
        # No state of a random number generator: every step seeds its own.
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "val_loss": self.val_loss,
            "best_val_loss": self.best_val_loss,
        }
        save_checkpoint(
            self.out,
            self.step,
            config=self.config.model,
            weights=self.model.state_dict(),
            trainer=state,
            tokenizer=Path(self.config.data.tokenizer),
            val_loss=val_loss,
            best=best,
        )

    def prepared_model(self) -> nn.Module:
        """Return the model as the steps call it: compiled where that works, in step with others."""
        model: nn.Module = self.model
        if self.settings.compile:
            compiled: Any = torch.compile(model)
            try:
                tokens, targets = self.batch(0)
                with self.device.autocast():
                    compiled(tokens, targets).backward()
                model = compiled
            except Exception as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"torch.compile does not work here: {reason[0]}", stacklevel=2)
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.world_size > 1:
            on_gpu = self.device.device.type == "cuda"
            ids = [self.device.device.index] if on_gpu else None
            model = DistributedDataParallel(model, device_ids=ids)
        return model

    # ---- steps ---------------------------------------------------------------------------

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        size = self.settings.batch_size
        tokens, targets = self.train_data.batch(number, size, self.settings.seed)
        if self.device.device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
        return (
            tokens.to(self.device.device, non_blocking=True),
            targets.to(self.device.device, non_blocking=True),
        )

    def take_step(self) -> tuple[Tensor, Tensor]:
        """Update the weights once; return the loss of this process and the gradient's length."""
        settings = self.settings
        rate = settings.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        passes = settings.grad_accumulation
        first = (self.step * self.device.world_size + self.device.rank) * passes
        total = torch.zeros((), device=self.device.device)
        for index in range(passes):
            number = first + index
            tokens, targets = self.batch(number)
            # Dropout depends on the batch alone, so neither resuming nor the number of
            # processes changes it.
            torch.manual_seed(settings.seed * 1_000_003 + number)
            last = index == passes - 1
            wait = isinstance(self.forward, DistributedDataParallel) and not last
            with self.forward.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.device.autocast():
                    loss = self.forward(tokens, targets) / passes
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        limit = settings.grad_clip or math.inf
        length = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, length

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the validation windows, each process taking its share."""
        settings = self.settings
        one_story = self.config.data.windows == "stories"
        batches = self.val_data.in_order(settings.batch_size, settings.eval_batches, one_story)
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device.device)
        count = torch.zeros_like(loss)
        for tokens, targets in batches[self.device.rank :: self.device.world_size]:
            counted = int((targets != IGNORED).sum())
            with self.device.autocast():
                mean = self.model(tokens.to(self.device.device), targets.to(self.device.device))
            loss += mean.double() * counted
            count += counted
        self.model.train()
        return float(self.device.mean(loss) / self.device.mean(count))

    # ---- the run -------------------------------------------------------------------------

    def run(self) -> Result:
        settings = self.settings
        metrics = self.open_run() if self.device.is_main else None
        tokens_per_step = (
            settings.batch_size
            * settings.grad_accumulation
            * self.config.model.max_seq_len
            * self.device.world_size
        )
        flops_per_step = tokens_per_step * self.model.flops_per_token()
        peak = self.device.peak_flops() * self.device.world_size if metrics else 1.0
        self.model.train()
        bar = tqdm(
            total=settings.max_steps, initial=self.step, unit="step", disable=not self.progress
        )
        clock, clock_step = time.perf_counter(), self.step
        try:
            while self.step < settings.max_steps:
                loss, length = self.take_step()
                bar.update()
                done = self.step == settings.max_steps
                logged = self.step % settings.log_interval == 0 or done
                evaluated = self.step % settings.eval_interval == 0 or done
                every = settings.checkpoint_interval
                saved = evaluated or (every and self.step % every == 0)
                if not logged and not saved:
                    continue
                mean = self.device.mean(loss)  # also waits for the device
                self.check("loss", mean)
                if not self.scaler.is_enabled():  # which skips a step of endless gradients
                    self.check("gradient's length", self.device.mean(length))
                if logged:
                    steps_per_s = (self.step - clock_step) / (time.perf_counter() - clock)
                    self.log(
                        metrics,
                        bar,
                        loss=mean,
                        lr=settings.learning_rate_at(self.step - 1),
                        grad_norm=float(length),
                        tokens_per_s=round(steps_per_s * tokens_per_step, 1),
                        mfu=round(steps_per_s * flops_per_step / peak, 4),
                    )
                    clock, clock_step = time.perf_counter(), self.step
                if evaluated:
                    self.look(metrics, partial(bar.write, file=sys.stderr))
                elif saved:
                    self.save()
                else:
                    continue
                clock, clock_step = time.perf_counter(), self.step
        finally:
            bar.close()
            if metrics:
                metrics.close()
        return Result(self.step, self.val_loss, self.best_val_loss, self.out)

    def open_run(self) -> Metrics:
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.out / "config.toml") as file:
            file.write(self.config.to_toml())
        return Metrics(self.out, self.step)

    def check(self, name: str, value: float) -> None:
        """End the run before a number that is none gets into a checkpoint."""
        # All processes see the same mean, so all stop together.
        if not math.isfinite(value):
            raise Pyllama2cError(
                f"the {name} is {value} at step {self.step}; a lower learning_rate or "
                "another dtype may help"
            )

    def log(self, metrics: Metrics | None, bar: Any, **values: float) -> None:
        if metrics:
            metrics.write(self.step, **values)
            bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {values['tokens_per_s']:,.0f} tokens/s, "
                f"MFU {values['mfu']:.0%}"
            )

    def look(self, metrics: Metrics | None, show: Callable[[str], None]) -> None:
        """Evaluate, sample a text, save, draw."""
        self.val_loss = self.evaluate()
        self.check("validation loss", self.val_loss)
        best = self.val_loss < self.best_val_loss
        self.best_val_loss = min(self.val_loss, self.best_val_loss)
        if metrics:
            per_character = self.val_loss * self.tokens_per_character
            metrics.write(self.step, val_loss=self.val_loss, val_loss_per_character=per_character)
            text = self.sample()
            with (self.out / "samples.txt").open("a", encoding="utf-8") as file:
                file.write(f"step {self.step}, validation loss {self.val_loss:.4f}\n{text}\n\n")
            if self.progress:
                show(f"step {self.step}, validation loss {self.val_loss:.4f}\n{text}\n")
        self.save(self.val_loss, best=best)
        if metrics:
            metrics.plot()

    def sample(self) -> str:
        limit = self.settings.sample_tokens
        if not limit:
            return ""
        with self.device.autocast():
            return sample_text(self.model, self.config.data.tokenizer, limit, seed=self.step)


def make_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices, none on norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
    }
    try:
        return torch.optim.AdamW(groups, fused=True, **options)
    except RuntimeError:  # a device without a fused one
        return torch.optim.AdamW(groups, **options)
