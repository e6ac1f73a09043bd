"""Training configurations: small TOML files with three tables, checked before anything runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, MissingExtraError

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Args:
        train: token file, as written by ``pyllama2c data tokenize``.
        validation: token file of stories that are not in ``train``.
        tokenizer: the ``tokenizer.model`` both were made with; goes into the checkpoints.
        windows: ``"chunks"`` cuts the token stream into pieces of ``max_seq_len`` (llama2.c's
            way); ``"stories"`` lets each window begin at a story's BOS, as generation does.
    """

    train: str
    validation: str
    tokenizer: str
    windows: str = "chunks"

    def __post_init__(self) -> None:
        _one_of("windows", self.windows, ("chunks", "stories"))


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One step is one update of the weights.

    Args:
        batch_size: sequences in one forward and backward pass.
        grad_accumulation: such passes in one step, in each process.
        max_steps: length of the run; the learning rate ends its cosine there.
        warmup_steps: steps over which the learning rate rises from 0.
        learning_rate: its highest value.
        min_learning_rate: its last value.
        beta1: AdamW's decay of the mean gradient.
        beta2: AdamW's decay of the mean squared gradient.
        weight_decay: AdamW's, on matrices alone.
        grad_clip: longest gradient, in the 2-norm; 0 for no limit.
        dropout: see `Llama`.
        attention_dropout: see `Llama`.
        seed: of the weights, the order of the data and the dropout.
        eval_interval: steps between evaluations; each writes a checkpoint.
        eval_batches: batches of ``batch_size`` of the validation set to look at (all, if it has
            fewer).
        checkpoint_interval: steps between further checkpoints; 0 for none.
        log_interval: steps between lines in the metrics file.
        sample_tokens: length of the text sampled at each evaluation; 0 for none.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        dtype: of the matrix products; weights and optimizer stay float32. ``"auto"`` is bfloat16
            on a GPU that has it, float16 on other GPUs, float32 on the CPU.
        compile: use ``torch.compile``; where it fails, the model runs uncompiled, with a warning.
        threads: of the CPU; 0 leaves PyTorch's choice.
    """

    batch_size: int
    max_steps: int
    learning_rate: float
    grad_accumulation: int = 1
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    seed: int = 1337
    eval_interval: int = 1000
    eval_batches: int = 100
    checkpoint_interval: int = 0
    log_interval: int = 10
    sample_tokens: int = 200
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_steps", "grad_accumulation", "eval_interval"):
            _at_least(name, getattr(self, name), 1)
        for name in ("eval_batches", "log_interval"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "checkpoint_interval", "sample_tokens", "threads", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "min_learning_rate", "weight_decay", "grad_clip"):
            _at_least(name, getattr(self, name), 0)
        for name in ("beta1", "beta2", "dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(
                    f"{name} is {getattr(self, name)}, expected a number from 0 to below 1"
                )
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of the update that follows ``step`` updates."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        span = max(1, self.max_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_learning_rate + cosine * (self.learning_rate - self.min_learning_rate)


@dataclass(frozen=True)
class RunConfig:
    """A whole run: the tables ``[model]``, ``[data]`` and ``[train]`` of a file."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    def to_toml(self) -> str:
        """Write the configuration with every default spelled out."""
        lines: list[str] = []
        for table, values in asdict(self).items():
            lines += [f"[{table}]", *(f"{k} = {_toml_value(v)}" for k, v in values.items()), ""]
        return "\n".join(lines)


def config_names() -> list[str]:
    """Name the configurations that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        source: a TOML file, or the name of one that comes with the package.
        overrides: ``key=value`` or ``table.key=value``, the value written as in TOML (quotation
            marks may be left out).

    Raises:
        ArgumentError: no such file; a table, key, type or value that does not belong there.
    """
    path = Path(source)
    if not path.is_file():
        path = CONFIGS / f"{source}.toml"
    if not path.is_file():
        raise ArgumentError(
            f"config is {str(source)!r}, expected a TOML file or one of {', '.join(config_names())}"
        )
    try:
        tables = _parse_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: not UTF-8 ({error})") from None
    unknown = sorted(set(tables) - {"model", "data", "train"})
    if unknown:
        raise ArgumentError(f"{path}: unknown {unknown[0]!r}, expected [model], [data], [train]")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ArgumentError(f"{path}: {name} is {table!r:.80}, expected one table [{name}]")
    kinds = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
    for override in overrides:
        _override(tables, kinds, override)
    return RunConfig(
        model=_build(ModelConfig, tables.get("model", {}), f"{path}: [model]"),
        data=_build(DataConfig, tables.get("data", {}), f"{path}: [data]"),
        train=_build(TrainConfig, tables.get("train", {}), f"{path}: [train]"),
    )


T = TypeVar("T")


def _build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table, checking names and types."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ArgumentError(f"{where}: unknown key {name!r}, expected {', '.join(known)}")
        expected = str(known[name].type)
        whole = expected == "float" and type(value) is int
        if type(value).__name__ != expected and not whole:
            raise ArgumentError(f"{where}: {name} is {value!r}, expected {expected}")
        checked[name] = float(value) if whole else value
    try:
        return kind(**checked)
    except TypeError:
        missing = [n for n, field in known.items() if n not in values and field.default is MISSING]
        raise ArgumentError(f"{where}: {', '.join(missing)} missing") from None


def _override(tables: dict[str, Any], kinds: Mapping[str, type], override: str) -> None:
    key, equals, value = override.partition("=")
    table, _, name = key.strip().rpartition(".")
    holders = [
        kind
        for kind, dataclass_type in kinds.items()
        if table in ("", kind) and name in {field.name for field in fields(dataclass_type)}
    ]
    if not equals:
        raise ArgumentError(f"override {override!r}: expected key=value")
    if not holders:
        known = [f"{kind}.{field.name}" for kind, one in kinds.items() for field in fields(one)]
        raise ArgumentError(f"override {override!r}: unknown key, expected {', '.join(known)}")
    try:
        parsed = _parse_toml(f"value = {value}", override)["value"]
    except ArgumentError:
        parsed = value.strip()
    tables.setdefault(holders[0], {})[name] = parsed


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingExtraError(
                'reading a config needs tomli: pip install "pyllama2c[train]"'
            ) from error
    try:
        parsed: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"{where}: not TOML ({error})") from None
    return parsed


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ArgumentError(f"{name} is {value}, expected at least {least}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
