"""The training loop: what it computes, what it leaves, how it goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIGS, random_tensors
from reference import forward
from training import MODEL, curve, make_data, make_run

from pyllama2c import Model
from pyllama2c.data.tokens import TokenInfo, note_path
from pyllama2c.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MissingExtraError,
    Pyllama2cError,
)
from pyllama2c.train.config import DataConfig, RunConfig, load_config

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("safetensors", reason="training needs safetensors")
pytest.importorskip("matplotlib", reason="training draws its losses with matplotlib")

from pyllama2c.train.batches import IGNORED, Windows  # noqa: E402
from pyllama2c.train.metrics import Metrics, read_metrics  # noqa: E402
from pyllama2c.train.model import Llama  # noqa: E402
from pyllama2c.train.trainer import train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return make_data(tmp_path_factory.mktemp("data"))


# ---- the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi-head", "grouped-query", "multi-query", "untied"])
def test_the_model_computes_what_the_reference_does(name: str) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config)
    model = Llama(config, dropout=0.5, attention_dropout=0.5).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    ids = [1, 5, 3, 90, 17, 5, 2]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).numpy()[0]
    assert np.abs(logits - forward(config, tensors, ids)).max() < 1e-4


def test_the_loss_is_the_mean_over_the_targets_that_count() -> None:
    model = Llama(MODEL)
    tokens = torch.tensor([[1, 5, 3, 7]])
    targets = torch.tensor([[5, IGNORED, 7, 1]])
    chances = torch.log_softmax(model(tokens)[0], -1)
    wanted = -(chances[0, 5] + chances[2, 7] + chances[3, 1]) / 3
    assert torch.allclose(model(tokens, targets), wanted)


def test_the_reference_has_93_3_million_parameters() -> None:
    with torch.device("meta"):
        model = Llama(load_config("tinystories-zh-93m").model)
    assert model.n_parameters() == load_config("tinystories-zh-93m").model.n_params
    assert round(model.n_parameters() / 1e6, 1) == 93.3


# ---- the data ------------------------------------------------------------------------------

STREAM = np.array([1, 10, 11, 1, 20, 1, 30, 31, 32], np.uint16)  # three stories, BOS is 1


def test_windows_that_begin_with_a_story() -> None:
    windows = Windows(STREAM, length=4, mode="stories", bos_id=1)
    assert len(windows) == 3
    ((tokens, targets),) = windows.in_order(size=8, limit=1, one_story=False)
    assert tokens.tolist() == [[1, 10, 11, 1], [1, 20, 1, 30], [1, 30, 31, 32]]
    assert targets.tolist() == [[10, 11, 1, 20], [20, 1, 30, 31], [30, 31, 32, 1]]
    ((_, targets),) = windows.in_order(size=8, limit=1, one_story=True)
    assert targets.tolist() == [[10, 11, 1, -1], [20, 1, -1, -1], [30, 31, 32, 1]]


def test_windows_of_the_stream() -> None:
    windows = Windows(STREAM, length=4, mode="chunks", bos_id=1)
    ((tokens, targets),) = windows.in_order(size=8, limit=1, one_story=False)
    assert tokens.tolist() == [[1, 10, 11, 1], [20, 1, 30, 31]]
    assert targets.tolist() == [[10, 11, 1, 20], [1, 30, 31, 32]]
    with pytest.raises(DataError, match="too few for a window of 9"):
        Windows(STREAM, length=9, mode="chunks", bos_id=1)
    with pytest.raises(DataError, match="hold no BOS"):
        Windows(STREAM, length=4, mode="stories", bos_id=2)


def test_every_pass_sees_every_window_once_in_an_order_of_its_own() -> None:
    stream = np.arange(101, dtype=np.uint16)
    passes = []
    for epoch in range(3):
        windows = Windows(stream, length=10, mode="chunks", bos_id=0)  # nothing is remembered
        batches = [windows.batch(number, 2, seed=5) for number in range(5 * epoch, 5 * epoch + 5)]
        passes.append([int(row[0]) for tokens, _ in batches for row in tokens])
    assert all(sorted(one) == list(range(0, 100, 10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_files_that_do_not_belong_together(data: DataConfig, tmp_path: Path) -> None:
    config = make_run(data)
    other = dataclasses.replace(MODEL, vocab_size=401)
    with pytest.raises(DataError, match="a vocabulary of 400, but the model's vocab_size is 401"):
        train(dataclasses.replace(config, model=other), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(Path(data.tokenizer).read_bytes() + b"\0")
    wrong = dataclasses.replace(data, tokenizer=str(tmp_path / "tokenizer.model"))
    with pytest.raises(DataError, match="was made with another tokenizer than"):
        train(dataclasses.replace(config, data=wrong), tmp_path)
    longer = dataclasses.replace(MODEL, max_seq_len=4096)
    short = dataclasses.replace(data, windows="chunks")
    with pytest.raises(DataError, match=r"validation\.npy: \d+ tokens are too few for a window"):
        train(dataclasses.replace(config, model=longer, data=short), tmp_path)
    missing = dataclasses.replace(data, train="missing.npy")
    with pytest.raises(DataError, match=r"missing\.npy\.json: no such file"):
        train(dataclasses.replace(config, data=missing), tmp_path)
    assert TokenInfo(**json.loads(note_path(data.train).read_text())).stories == 300


# ---- the loop ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run that nobody interrupted."""
    config = make_run(data, checkpoint_interval=4, sample_tokens=5)
    out = tmp_path_factory.mktemp("whole") / "run"
    result = train(config, out)
    assert result.steps == 12
    return config, out


def test_what_a_run_leaves(whole: tuple[RunConfig, Path]) -> None:
    config, out = whole
    names = {path.name for path in out.iterdir() if path.name != "tensorboard"}
    assert {"config.toml", "metrics.jsonl", "loss.png", "samples.txt", "last", "best"} <= names
    assert load_config(out / "config.toml") == config
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "last").resolve().name == "step-00000012"
    assert not list(out.glob(".*"))
    assert len(list(out.glob("step-*"))) <= 2  # the last and the best
    assert (out / "samples.txt").read_text().count("validation loss") == 2
    records = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "val_loss" in r] == [6, 12]
    first = records[0]
    assert first["lr"] == config.train.learning_rate_at(0)
    assert {"loss", "grad_norm", "tokens_per_s", "mfu"} <= first.keys()
    with Model(out) as model:  # the best, the tokenizer with it
        assert model.config == config.model
        assert model.tokenizer is not None
        assert model.generate("从前", max_tokens=3, ignore_eos=True).token_ids


def test_the_validation_loss_is_that_of_the_engine(whole: tuple[RunConfig, Path]) -> None:
    """Per token of each story up to the BOS after it, and per character."""
    config, out = whole
    tokens = np.load(config.data.validation)
    begins = np.flatnonzero(tokens == 1)[:8]  # eval_batches of batch_size windows
    with Model(out / "last") as model:
        loss = []
        for begin, end in zip(begins, np.flatnonzero(tokens == 1)[1:9], strict=True):
            ids = tokens[begin : end + 1][: config.model.max_seq_len + 1].astype(int)
            logits = model.logits(ids[:-1].tolist()).astype(np.float64)
            chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            loss.append(-chances[np.arange(len(ids) - 1), ids[1:]])
    stored = [r for r in read_metrics(out / "metrics.jsonl") if "val_loss" in r][-1]
    assert stored["val_loss"] == pytest.approx(np.concatenate(loss).mean(), abs=1e-4)
    note = json.loads(note_path(config.data.validation).read_text())
    per_character = stored["val_loss"] * note["tokens"] / note["characters"]
    assert stored["val_loss_per_character"] == pytest.approx(per_character)


@pytest.mark.parametrize("stop", [4, 7])
def test_going_on_is_bit_for_bit(whole: tuple[RunConfig, Path], tmp_path: Path, stop: int) -> None:
    config, out = whole
    other = tmp_path / "run"

    class Stopped(Exception):
        pass

    def stopping(self: Any, metrics: Any, bar: Any, **values: float) -> None:
        log(self, metrics, bar, **values)
        if self.step > stop:
            raise Stopped

    from pyllama2c.train import trainer

    log = trainer.Trainer.log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "log", stopping)
        with pytest.raises(Stopped):
            train(config, other)
    train(config, other, resume=True)
    assert curve(other) == curve(out)
    weights = [(run / "last" / "model.safetensors").read_bytes() for run in (out, other)]
    assert weights[0] == weights[1]


def test_gradient_accumulation_is_a_larger_batch(data: DataConfig, tmp_path: Path) -> None:
    for passes in (1, 4):
        config = make_run(data, dropout=0.0, batch_size=8 // passes, grad_accumulation=passes)
        train(config, tmp_path / str(passes))
    one, four = curve(tmp_path / "1"), curve(tmp_path / "4")
    for name in ("loss", "grad_norm"):
        pairs = [(a[name], b[name]) for a, b in zip(one, four, strict=True) if name in a]
        assert len(pairs) == 12
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-3)


def test_bfloat16_learns_too(data: DataConfig, tmp_path: Path) -> None:
    train(make_run(data, dtype="bfloat16", max_steps=40), tmp_path)
    loss = [r["loss"] for r in curve(tmp_path) if "loss" in r]
    assert loss[-1] < 0.6 * loss[0]


def test_where_compiling_fails_it_says_so_and_goes_on(
    data: DataConfig, whole: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    def broken(model: Any) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    config = dataclasses.replace(whole[0], train=dataclasses.replace(whole[0].train, compile=True))
    with pytest.warns(UserWarning, match="torch.compile does not work here: no C\\+\\+ compiler"):
        train(config, tmp_path)
    assert curve(tmp_path) == curve(whole[1])


def test_a_loss_that_is_no_number_ends_the_run(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(
        Pyllama2cError, match=r"(loss|length) is nan at step \d+; a lower learning_rate"
    ):
        train(make_run(data, learning_rate=1e30, grad_clip=0, max_steps=40), tmp_path)


def test_no_number_gets_into_a_checkpoint(data: DataConfig, tmp_path: Path) -> None:
    from pyllama2c.train import trainer

    step = trainer.Trainer.take_step

    def broken(self: Any) -> Any:
        loss, length = step(self)
        return loss, length * float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "take_step", broken)
        with pytest.raises(Pyllama2cError, match="the gradient's length is nan at step 2"):
            train(make_run(data, log_interval=100, checkpoint_interval=2), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()


def test_resuming_takes_the_settings_of_now(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    from pyllama2c.train.device import open_device
    from pyllama2c.train.trainer import Trainer

    config, out = whole
    settings = dataclasses.replace(config.train, weight_decay=0.25, beta1=0.5)
    config = dataclasses.replace(config, train=settings)
    groups = Trainer(config, out, open_device(settings), False).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    assert [group["betas"] for group in groups] == [(0.5, 0.95)] * 2


def test_processes_that_see_different_runs(whole: tuple[RunConfig, Path]) -> None:
    from pyllama2c.train.device import Device
    from pyllama2c.train.trainer import Trainer

    class OneOfTwo(Device):
        def mean(self, value: Any) -> float:
            return float(value) / 2  # the other one found nothing to resume from

    config, out = whole
    device = OneOfTwo(torch.device("cpu"), torch.float32, 0, 1)
    with pytest.raises(CheckpointError, match="every machine has to see the same directory"):
        Trainer(config, out, device, False)


def test_a_checkpoint_knows_the_loss_of_its_own_weights_alone(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> float:
        raise KeyboardInterrupt

    last = tmp_path / "run" / "last" / "model.json"
    result = train(make_run(data, max_steps=2), tmp_path / "run")
    assert json.loads(last.read_text())["val_loss"] == result.val_loss
    monkeypatch.setattr("pyllama2c.train.trainer.Trainer.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):  # at step 4, when 3 is saved
        train(make_run(data, max_steps=4, checkpoint_interval=3), tmp_path / "run", resume=True)
    content = json.loads(last.read_text())
    assert (content["step"], content["val_loss"]) == (3, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "SafetensorError"),
        ("model.json", b"[]", "TypeError"),
        ("model.json", b'{"config": null}', "TypeError"),
        ("trainer.pt", {}, "optimizer"),
        ("trainer.pt", [], "TypeError"),
        ("trainer.pt", Path("an object"), "Unpickling"),
        ("tokenizer.model", b"other", "another tokenizer"),
    ],
)
def test_damaged_state(
    whole: tuple[RunConfig, Path], tmp_path: Path, name: str, content: Any, message: str
) -> None:
    shutil.copytree(whole[1], tmp_path / "run", symlinks=True)
    path = tmp_path / "run" / "last" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        train(whole[0], tmp_path / "run", resume=True)


def test_a_run_goes_on_in_float16(
    whole: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose gradients are scaled, as those of the run so far were not."""
    shutil.copytree(whole[1], tmp_path / "run", symlinks=True)
    made = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: made(device, enabled=True))
    train(whole[0], tmp_path / "run", resume=True)


def test_metrics_are_read_up_to_the_first_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step"\xff\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1}]


def test_metrics_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    """Of float16, whose first gradients are endless."""
    metrics = Metrics(tmp_path, 0)
    metrics.write(1, loss=2.5, grad_norm=float("inf"))
    metrics.close()
    assert metrics.path.read_text() == '{"step": 1, "loss": 2.5, "grad_norm": null}\n'


def test_without_matplotlib_nothing_is_trained(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyllama2c.train.metrics.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        train(make_run(data), tmp_path)


def test_what_is_refused(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, out = whole
    with pytest.raises(ArgumentError, match="holds a run already; resume it"):
        train(config, out)
    wider = dataclasses.replace(config, model=dataclasses.replace(MODEL, dim=48))
    with pytest.raises(CheckpointError, match="dim is 32 there and 48 in the configuration"):
        train(wider, out, resume=True)
    nowhere = dataclasses.replace(config.train, device="cuda:99")
    with pytest.raises(ArgumentError, match="device is 'cuda:99', but"):
        train(dataclasses.replace(config, train=nowhere), tmp_path)


def test_command_line(data: DataConfig, cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(make_run(data).to_toml())
    result = cli("train", tmp_path / "tiny.toml", "max_steps=2", "-o", tmp_path / "run")
    assert result.status == 0, result.stderr
    assert "2 steps, validation loss" in result.stdout
    result = cli("train", tmp_path / "tiny.toml", "max_steps=2", "-o", tmp_path / "run")
    assert result.status == 2
    assert "holds a run already" in result.stderr
    result = cli("train", tmp_path / "tiny.toml", "max_steps=0")
    assert result.status == 2
    assert result.stderr == "error: max_steps is 0, expected at least 1\n"
