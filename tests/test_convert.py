"""Whole conversions, through the function and the command line: files, tokenizers, refusals."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from models import CONFIGS, checkpoint_of
from reference import forward

from pyllama2c import Model
from pyllama2c.checkpoint import Checkpoint, open_checkpoint
from pyllama2c.checkpoint.safetensors_file import write_safetensors
from pyllama2c.config import ModelConfig
from pyllama2c.convert import convert
from pyllama2c.convert.llama2c import write_v0
from pyllama2c.errors import ArgumentError, CheckpointError, TokenizerError
from pyllama2c.sentencepiece_model import SentencePieceModel

TEXT = "Once upon a time there was a little dog. The dog ran to the big red ball and played."
HF_FILES = ["config.json", "generation_config.json", "model.safetensors"]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    """48 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=48,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def model(tokenizer_model: bytes) -> Checkpoint:
    return checkpoint_of(ModelConfig(64, 172, 2, 8, 4, 48, 64))


@pytest.fixture
def source(tmp_path: Path, model: Checkpoint, tokenizer_model: bytes) -> Path:
    """A llama2.c v0 file with its tokenizer beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    with (folder / "model.bin").open("wb") as file:
        write_v0(file, model)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    return folder / "model.bin"


def write_training(
    directory: Path, model: Checkpoint, tokenizer_model: bytes, **change: Any
) -> None:
    directory.mkdir(parents=True)
    fields = {name: getattr(model.config, name) for name in ModelConfig.__dataclass_fields__}
    content = {"format": "pyllama2c-training", "version": 1, "config": fields, "step": 3} | change
    (directory / "model.json").write_text(json.dumps(content))
    with (directory / "model.safetensors").open("wb") as file:
        shapes = {name: weight.shape for name, weight in model.tensors.items()}
        write_safetensors(file, shapes, "float32", model.tensors.__getitem__, {})
    (directory / "tokenizer.model").write_bytes(tokenizer_model)


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def check_same_text(path: Path, model: Checkpoint) -> None:
    """The engine computes what the reference does and finds the tokenizer by itself."""
    with Model(path) as engine:
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode(TEXT)[:20]
        expected = forward(model.config, model.tensors, ids)
        assert np.abs(engine.logits(ids) - expected).max() < 1e-4


def test_every_format_and_the_tokenizer_with_it(source: Path, model: Checkpoint) -> None:
    out = source.parent.parent / "out"
    for to in ("v0", "v1", "v2"):
        done = convert(source, out / to / "model.bin", to=to)
        assert listing(out / to) == ["model.bin", "tokenizer.bin", "tokenizer.model"] == done.files
    done = convert(source, out / "hf")
    assert listing(out / "hf") == sorted(HF_FILES + TOKENIZER_FILES) == done.files
    for path in (out / "v0" / "model.bin", out / "v1" / "model.bin", out / "hf"):
        check_same_text(path, model)
    with Model(out / "v2" / "model.bin", dtype="float32") as engine:
        quantized = open_checkpoint(out / "v2" / "model.bin")
        ids = [1, 5, 9, 13]
        expected = forward(quantized.config, quantized.tensors, ids)
        assert np.abs(engine.logits(ids) - expected).max() < 1e-4


def test_training_checkpoints(tmp_path: Path, model: Checkpoint, tokenizer_model: bytes) -> None:
    run = tmp_path / "run"
    write_training(run / "step-3", model, tokenizer_model)
    (run / "best").symlink_to("step-3")
    for directory in (run, run / "best", run / "step-3"):
        assert open_checkpoint(directory).config == model.config
        convert(directory, tmp_path / "hf", force=True)
        check_same_text(tmp_path / "hf", model)
    assert set(TOKENIZER_FILES) <= set(listing(tmp_path / "hf"))
    # Killed before the first evaluation.
    (run / "best").rename(run / "last")
    check_same_text(run, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 2}, "version 2"),
        ({"config": {"dim": 64}}, "config"),
        ({"config": None}, "config"),
        ({"config": {"dim": 64, "hidden": 1}}, "config"),
    ],
)
def test_broken_training_checkpoints(
    tmp_path: Path, model: Checkpoint, tokenizer_model: bytes, change: Any, message: str
) -> None:
    write_training(tmp_path / "run", model, tokenizer_model, **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "run")


def test_a_tokenizer_bin_is_enough(
    source: Path, model: Checkpoint, tokenizer_model: bytes, tmp_path: Path
) -> None:
    (source.parent / "tokenizer.model").unlink()
    exported = SentencePieceModel.from_model(tokenizer_model).to_llama2c()
    (source.parent / "tokenizer.bin").write_bytes(exported)
    convert(source, tmp_path / "hf")
    check_same_text(tmp_path / "hf", model)
    convert(tmp_path / "hf", tmp_path / "back" / "model.bin", to="v1")
    assert (tmp_path / "back" / "tokenizer.bin").read_bytes() == exported


def test_a_tokenizer_bin_in_a_hugging_face_directory_comes_along(
    source: Path, model: Checkpoint, tmp_path: Path
) -> None:
    """llama2.c's exporter leaves generation_config.json there, and no tokenizer."""
    convert(source, tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer.model"):  # the settings may stay, or not
        (tmp_path / "hf" / name).unlink()
    done = convert(tmp_path / "hf", tmp_path / "none")
    assert any("no tokenizer" in note for note in done.notes)
    convert(source, tmp_path / "v0" / "model.bin", to="v0")
    shutil.copy(tmp_path / "v0" / "tokenizer.bin", tmp_path / "hf")
    for name in ("second", "third"):
        convert(tmp_path / "hf", tmp_path / name)
        check_same_text(tmp_path / name, model)
        (tmp_path / "hf" / "tokenizer_config.json").unlink(missing_ok=True)


def test_without_a_tokenizer_it_says_so(source: Path, tmp_path: Path) -> None:
    (source.parent / "tokenizer.model").unlink()
    done = convert(source, tmp_path / "hf")
    assert listing(tmp_path / "hf") == HF_FILES
    assert any("no tokenizer" in note for note in done.notes)
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (content["bos_token_id"], content["eos_token_id"]) == (1, 2)


def test_a_tokenizer_of_another_model(source: Path, tmp_path: Path, model: Checkpoint) -> None:
    other = tmp_path / "other.bin"
    with other.open("wb") as file:
        write_v0(file, checkpoint_of(CONFIGS["grouped-query"]))  # 96 pieces
    with pytest.raises(TokenizerError, match=r"48.*96"):
        convert(other, tmp_path / "hf", tokenizer=source.parent / "tokenizer.model")
    assert not (tmp_path / "hf").exists()
    # One that merely lies there does not stop the conversion.
    shutil.copy(source.parent / "tokenizer.model", tmp_path)
    done = convert(other, tmp_path / "hf")
    assert any("48 pieces" in note for note in done.notes)


def test_generation_stops_at_the_next_story(source: Path, tmp_path: Path) -> None:
    """llama2.c's models have never seen EOS: BOS ends a text, for transformers too."""
    convert(source, tmp_path / "hf")
    content = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert content == {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 2}


def test_hugging_face_files_are_kept(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "hf")
    extra = {"generation_config.json": '{"top_k": 7}', "chat_template.jinja": "{{ messages }}"}
    for name, text in extra.items():
        (tmp_path / "hf" / name).write_text(text)
    convert(tmp_path / "hf", tmp_path / "half", dtype="float16")
    for name in (*extra, *TOKENIZER_FILES):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_the_special_tokens_of_the_source_are_kept(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    ids = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    convert(tmp_path / "hf", tmp_path / "half", dtype="float16")
    (tmp_path / "half" / "generation_config.json").unlink()
    assert ids.items() <= json.loads((tmp_path / "half" / "config.json").read_text()).items()
    with Model(tmp_path / "half") as model:  # which has a tokenizer, too
        ends = [model.generate("", logit_bias={i: 1e6}, max_tokens=1) for i in (1, 2, 5, 6)]
    assert [end.finish_reason for end in ends] == ["stop"] * 3 + ["length"]
    # What only generation_config.json says goes with any tokenizer.
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": [2, 6]}')
    convert(tmp_path / "hf", tmp_path / "other", tokenizer=tmp_path / "hf" / "tokenizer.model")
    assert open_checkpoint(tmp_path / "other").eos_ids == (2, 6)


def test_existing_files_are_left_alone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"mine")
    with pytest.raises(ArgumentError, match="--force"):
        convert(source, target, to="v1")
    assert target.read_bytes() == b"mine"
    convert(source, target, to="v1", force=True)
    # The same tokenizer may stay, another may not be replaced.
    convert(source, tmp_path / "second.bin", to="v1")
    (tmp_path / "tokenizer.bin").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=r"tokenizer\.bin exists and differs"):
        convert(source, tmp_path / "third.bin", to="v1")
    assert not (tmp_path / "third.bin").exists()
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"mine"


def test_a_device_is_not_replaced(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArgumentError, match="fifo is no regular file"):
        convert(source, tmp_path / "fifo", to="v1", force=True)
    assert (tmp_path / "fifo").is_fifo()


def test_a_link_is_not_replaced(source: Path, tmp_path: Path) -> None:
    """Neither the link, which the user may not know of, nor what others see by it."""
    for name, leads_to in (("link.bin", source), ("dangling.bin", tmp_path / "nothing")):
        link = tmp_path / name
        link.symlink_to(leads_to)
        with pytest.raises(ArgumentError, match=rf"{name} is a symbolic link: name the file"):
            convert(source, link, to="v1", force=True)
        assert link.is_symlink()


def test_converting_in_place(source: Path, tmp_path: Path, model: Checkpoint) -> None:
    convert(source, source, to="v1", force=True)
    assert open_checkpoint(source).kind == "llama2.c v1"
    check_same_text(source, model)
    convert(source, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "hf", dtype="bfloat16", force=True)
    assert open_checkpoint(tmp_path / "hf").dtype == "bfloat16"


def test_a_directory_in_the_way(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "tokenizer.model").mkdir(parents=True)
    with pytest.raises(ArgumentError, match=r"tokenizer\.model is a directory"):
        convert(source, tmp_path / "out" / "model.bin", to="v0", force=True)
    assert listing(tmp_path / "out") == ["tokenizer.model"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "loop", tmp_path / "model.bin", to="v0")


def test_nothing_is_left_after_a_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[Path] = []

    def fail(_: object, folder: Path, *__: object) -> None:
        hidden.append(folder)
        raise OSError(28, "No space left on device", str(source), None, str(hidden[0]))

    monkeypatch.setattr("pyllama2c.convert.job.write_hf_tokenizer", fail)
    with pytest.raises(OSError, match=r"No space .*hf'$"):
        convert(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "README").write_text("mine")
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "hf")
    assert listing(tmp_path / "hf") == ["README"]


@pytest.mark.parametrize(
    ("destination", "options", "message"),
    [
        ("model.bin", {}, "say --to v0"),
        ("model.bin", {"to": "gguf"}, "to is 'gguf'"),
        ("model.bin", {"to": "v1", "dtype": "float16"}, "expected float32, which"),
        ("model.bin", {"to": "v2", "dtype": "bfloat16"}, "expected int8, which"),
        ("model.bin", {"to": "v2", "group_size": 0}, "group_size is 0"),
        ("out", {"dtype": "int3"}, "dtype is 'int3'"),
        (".", {"to": "v1"}, "is a directory"),
        (300 * "a", {}, "destination is .*: File name too long"),
        ("source/model.bin", {"to": "hf"}, "is a file"),
        ("source/model.bin/out", {}, r"destination is .*, but .*model\.bin is no directory"),
        ("model.bin", {"to": "v2", "group_size": "64"}, "group_size is '64'"),
        ("model.bin", {"to": "v1", "group_size": 6.5}, r"group_size is 6\.5"),
    ],
)
def test_arguments_that_do_not_go_together(
    source: Path, tmp_path: Path, destination: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(source, tmp_path / destination, **options)
    assert listing(tmp_path) == ["source"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyllama2c", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "q8.bin", "--to", "v2")
    assert done.returncode == 0
    read, wrote = done.stdout.splitlines()
    assert "llama2.c v0, float32, 0.09 M parameters" in read
    assert "llama2.c v2, int8 (q8.bin, tokenizer.bin, tokenizer.model)" in wrote
    assert done.stderr == (
        "note: group size 4, not 64: the largest that divides rows of 64 and 172, "
        "which llama2.c's runq needs\n"
    )


@pytest.mark.parametrize(
    "arguments", [("nothing", "out"), ("source/model.bin", "out.bin"), ("source", "out")]
)
def test_command_line_errors_are_one_line(
    source: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    done = run(tmp_path / arguments[0], tmp_path / arguments[1])
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert listing(tmp_path) == ["source"]


def test_the_library_does_not_import_the_converter() -> None:
    code = (
        "import sys, pyllama2c\n"
        "names = ('pyllama2c.convert', 'torch', 'safetensors', 'transformers')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
