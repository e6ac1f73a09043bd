"""What a run leaves to look at: metrics.jsonl, loss.png, and TensorBoard's files if it is there."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyllama2c.data.files import atomic_write
from pyllama2c.errors import MissingExtraError


class Metrics:
    """The record of a run, one JSON object a line.

    Lines with ``loss`` are about the batch of that very step, lines with ``val_loss`` about the
    weights after it.

    Args:
        run: the directory of the run.
        step: the step the run goes on from; what is recorded of later ones is cut off, since
            they will be taken again.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """

    def __init__(self, run: Path, step: int) -> None:
        # Said now and not when the first hours of training have passed.
        if find_spec("matplotlib") is None:
            raise MissingExtraError(
                'drawing the losses needs matplotlib: pip install "pyllama2c[train]"'
            )
        self.path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self.file = self.path.open("a", encoding="utf-8")
        self.tensorboard = _open_tensorboard(run, step)

    def write(self, step: int, **values: float) -> None:
        """Add a line; a number that is none becomes null, for which JSON has a word."""
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **known}) + "\n")
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)

    def plot(self) -> None:
        """Draw both losses over the steps into ``loss.png``."""
        plot_loss(read_metrics(self.path), self.path.with_name("loss.png"))

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file up to the first line that a kill has cut or a disk has garbled."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            break
        records.append(record)
    return records


def plot_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the losses in ``records`` into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _open_tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
