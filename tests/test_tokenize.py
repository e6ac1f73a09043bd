"""Training tokenizers and writing token files."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vocabularies
from sentencepiece import SentencePieceProcessor

from pyllama2c.data import tokenize as tokenize_module
from pyllama2c.data import tokenizer as tokenizer_module
from pyllama2c.data.readers import Story, read_stories
from pyllama2c.data.tokenize import tokenize
from pyllama2c.data.tokenizer import (
    TokenizerConfig,
    sample_stories,
    train_tokenizer,
    write_tokenizer,
)
from pyllama2c.data.tokens import as_tokens, note_path, open_tokens, token_dtype
from pyllama2c.errors import ArgumentError, DataError, TokenizerError
from pyllama2c.sentencepiece_model import SentencePieceModel
from pyllama2c.tokenizer import Tokenizer

STORIES = [
    Story(f"从前，有一只小兔子，她有{n}个朋友。\nOnce upon a time there was a rabbit. 🐰", f"s:{n}")
    for n in range(60)
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(vocabularies.train("byte fallback"))
    return path


# ---- token files ---------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_story_after_bos(tmp_path: Path, model: Path, jobs: int) -> None:
    info = tokenize(STORIES, model, tmp_path / "t.npy", jobs=jobs, shard_stories=7)
    tokens, again = open_tokens(tmp_path / "t.npy")
    processor = SentencePieceProcessor(model_file=str(model))
    wanted = [[processor.bos_id(), *processor.encode(story.text)] for story in STORIES]
    assert tokens.tolist() == [token for story in wanted for token in story]
    assert tokens.dtype == np.uint16
    assert isinstance(tokens, np.memmap)
    assert info == again
    assert (info.stories, info.tokens) == (60, len(tokens))
    assert info.characters == sum(len(story.text) for story in STORIES)
    assert not list(tmp_path.glob(".*"))  # nothing is left lying around


def test_the_corpus_beside_it_stays(tmp_path: Path, model: Path) -> None:
    (tmp_path / "train.json").write_text('["A rabbit."]')
    tokenize(read_stories([tmp_path / "train.json"]), model, tmp_path / "train.npy", jobs=1)
    assert (tmp_path / "train.json").read_text() == '["A rabbit."]'


def test_ids_are_checked_and_never_cast_blindly() -> None:
    assert token_dtype(1 << 16) is np.uint16
    assert token_dtype((1 << 16) + 1) is np.uint32
    assert as_tokens([0, 69_999], 70_000).tolist() == [0, 69_999]
    for bad in (3000, -1, 1 << 40):
        with pytest.raises(DataError, match=f"token id {bad} is not in the vocabulary of 3000"):
            as_tokens([1, bad], 3000)


def test_it_goes_on_where_it_was_interrupted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    write = tokenize_module._Encoder.write

    def counted(self: Any, shard: Any) -> None:
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(shard.path.name)
        write(self, shard)

    monkeypatch.setattr(tokenize_module._Encoder, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(STORIES, model, tmp_path / "t.npy", jobs=1, shard_stories=10)
    assert not (tmp_path / "t.npy").exists()
    monkeypatch.setattr(tokenize_module._Encoder, "write", write)
    again: list[str] = []
    monkeypatch.setattr(
        tokenize_module._Encoder,
        "write",
        lambda self, shard: (again.append(shard.path.name), write(self, shard))[1],
    )
    tokenize(STORIES, model, tmp_path / "t.npy", jobs=1, shard_stories=10)
    assert len(encoded) == len(again) == 3
    assert not set(encoded) & set(again)
    tokenize(STORIES, model, tmp_path / "fresh.npy", jobs=1)
    assert (tmp_path / "t.npy").read_bytes() == (tmp_path / "fresh.npy").read_bytes()


def test_workers_leave_ctrl_c_to_the_first_process(model: Path) -> None:
    """A terminal sends it to them too, and each would show a traceback."""
    before = signal.getsignal(signal.SIGINT)
    try:
        tokenize_module._start_worker(model)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_worker_names_its_story(tmp_path: Path, model: Path, jobs: int) -> None:
    stories = [*STORIES[:30], Story("half a pair \ud83d", "big.jsonl:4711"), *STORIES[30:]]
    with pytest.raises(DataError, match=r"big\.jsonl:4711: this story could not be encoded"):
        tokenize(stories, model, tmp_path / "t.npy", jobs=jobs, shard_stories=4)
    assert not (tmp_path / "t.npy").exists()


def _die(_: Any) -> None:
    os._exit(1)


def test_a_worker_that_dies(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_module, "_write_in_worker", _die)
    with pytest.raises(DataError, match="a worker process died while stories s:0 to s:9"):
        tokenize(STORIES, model, tmp_path / "t.npy", jobs=2, shard_stories=10)


def test_what_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ArgumentError, match=r"expected a name that ends in \.npy"):
        tokenize(STORIES, model, tmp_path / "t.bin")
    with pytest.raises(ArgumentError, match="jobs is 0"):
        tokenize(STORIES, model, tmp_path / "t.npy", jobs=0)
    with pytest.raises(DataError, match="no story to tokenize"):
        tokenize([], model, tmp_path / "new" / "t.npy", jobs=1)
    assert list(tmp_path.iterdir()) == [model]  # nothing is left of what was made for it
    with pytest.raises(ArgumentError, match="out needs the directory"):
        tokenize(STORIES, model, model / "t.npy", jobs=1)
    with pytest.raises(TokenizerError, match=r"(?i)no such file"):
        tokenize(STORIES, tmp_path / "no.model", tmp_path / "t.npy")
    other = tmp_path / "tokenizer.bin"
    other.write_bytes(SentencePieceModel.from_model(model.read_bytes()).to_llama2c())
    with pytest.raises(
        TokenizerError, match=r"a llama2\.c tokenizer, expected the tokenizer\.model"
    ):
        tokenize(STORIES, other, tmp_path / "t.npy")
    model.write_bytes(vocabularies.train("no BOS, no EOS"))
    with pytest.raises(TokenizerError, match="has no BOS piece"):
        tokenize(STORIES, model, tmp_path / "t.npy")


def test_a_damaged_token_file(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "t.npy"
    with pytest.raises(DataError, match="no such file"):
        open_tokens(path)
    tokenize(STORIES, model, path, jobs=1)
    note = note_path(path)
    whole = note.read_text()
    note.write_text(json.dumps(json.loads(whole) | {"tokens": 5}))
    with pytest.raises(DataError, match=r"the note beside it says uint16 of shape \(5,\)"):
        open_tokens(path)
    note.write_text(json.dumps(json.loads(whole) | {"vocab_size": 70_000}))
    with pytest.raises(DataError, match="says uint32"):
        open_tokens(path)
    note.write_text(whole)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a token file"):
        open_tokens(path)


# ---- training a tokenizer ------------------------------------------------------------------


def test_a_trained_tokenizer(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=330)
    model = train_tokenizer(STORIES, config)
    assert model == train_tokenizer(iter(STORIES), config)
    write_tokenizer(model, tmp_path, max_seq_len=64)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size == 330
    # Identity normalisation, every space kept, digits split, bytes for what it never saw.
    for text in ("Once  upon \n\n a time　", "①ﬁ½ 饕餮 👨‍👩‍👧", "\tx"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    processor = SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(330)]
    assert not [piece for piece in pieces[259:] if len(piece) > 1 and any(map(str.isdigit, piece))]
    assert "<0xFF>" in pieces
    # What llama2.c and transformers read says the same.
    same = Tokenizer.load(tmp_path / "tokenizer.bin")
    assert same.encode(STORIES[0].text) == tokenizer.encode(STORIES[0].text)
    assert struct.unpack("<i", (tmp_path / "tokenizer.bin").read_bytes()[:4])[0] > 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text())


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size is 9000, but this text allows at most"):
        train_tokenizer(STORIES, TokenizerConfig(vocab_size=9000))
    with pytest.raises(TokenizerError, match=r"the characters of this text alone need \d+"):
        train_tokenizer(STORIES, TokenizerConfig(vocab_size=270))
    for text in ("", "▅"):
        with pytest.raises(DataError, match="no text"):
            train_tokenizer([Story(text, "")])
    with pytest.raises(DataError, match="s:7: the story holds an unpaired surrogate"):
        train_tokenizer([*STORIES, Story("half a pair \ud83d", "s:7")])


def test_no_story_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """SentencePiece drops what holds its mark and what is too long."""
    config = TokenizerConfig(vocab_size=265)
    monkeypatch.setattr(tokenizer_module, "_MAX_BYTES", 40)
    for text in ("▅".join(["abcd"] * 10), "abcd" * 100):
        assert Tokenizer(train_tokenizer([Story(text, "")] * 10, config)).piece_to_id("d") > 0


def test_the_allowed_size_is_allowed() -> None:
    with pytest.raises(TokenizerError) as error:
        train_tokenizer(STORIES, TokenizerConfig(vocab_size=9000))
    allowed = int(str(error.value).split("at most ")[1].split()[0])
    assert train_tokenizer(STORIES, TokenizerConfig(vocab_size=allowed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 3}, "vocab_size is 3"),
        ({"sample": 0}, "sample is 0"),
        ({"character_coverage": 1.5}, "character_coverage is 1.5"),
    ],
)
def test_tokenizer_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TokenizerConfig(**options)


def test_the_sample_is_fair() -> None:
    stories = [Story(str(n), "") for n in range(20)]
    assert sample_stories(stories, 30, seed=0) == [str(n) for n in range(20)]
    drawn = [int(text) for seed in range(1000) for text in sample_stories(stories, 5, seed)]
    counts = np.bincount(drawn, minlength=20)  # 250 each, a standard deviation of 14
    assert len(drawn) == 5000
    assert counts.min() > 180
    assert counts.max() < 320


def test_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text("".join(json.dumps({"story": s.text}) + "\n" for s in STORIES))
    result = cli("tokenizer", "train", source, "-o", tmp_path / "tok", "--vocab-size", 330)
    assert result.status == 0, result.stderr
    result = cli("data", "tokenize", source, "-z", tmp_path / "tok" / "tokenizer.model", "-o",
                 tmp_path / "t.npy", "-j", 1)  # fmt: skip
    assert result.status == 0, result.stderr
    _, info = open_tokens(tmp_path / "t.npy")
    assert f"{info.tokens:,} tokens, 60 stories" in result.stdout
    result = cli("tokenizer", "train", source, "-o", tmp_path / "tok", "--vocab-size", 9000)
    assert result.status == 2
    assert result.stderr.startswith("error: vocab_size is 9000, but this text allows at most")
    assert len(result.stderr.splitlines()) == 1
    (tmp_path / "file").touch()  # seen at once, and not after hours of training
    result = cli("tokenizer", "train", tmp_path / "none.txt", "-o", tmp_path / "file")
    assert result.stderr.startswith("error: out needs the directory")
