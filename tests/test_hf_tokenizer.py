"""AutoTokenizer on the files we write gives SentencePiece's ids and SentencePiece's text."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from pyllama2c.convert.hf_tokenizer import merges, write_hf_tokenizer
from pyllama2c.errors import TokenizerError
from pyllama2c.sentencepiece_model import SentencePieceModel
from pyllama2c.tokenizer.llama2c_bin import to_model_proto

ENGLISH = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    "One day, she saw a big, red ball. It was too high for her to get it down.",
    "The dog said: come and play with me! And they played until the sun went down.",
    "aaaa bbbb aaaa abab baba aabb, banana ananas; 1 22 333 4444 12 34 56 78 90",
]
CHINESE = [
    "从前，有一只小兔子，它住在大森林里。小兔子最喜欢吃胡萝卜。",
    "“你好呀！”小狐狸说。“我们一起去玩吧。”小兔子高兴地跳了起来。",
    "天黑了，月亮出来了，星星一闪一闪的。小动物们都回家睡觉了。",
]
# What the trainer is told, and what that is about.
SETTINGS: dict[str, dict[str, Any]] = {
    "as this package trains": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    },
    "as llama2.c trains": {"byte_fallback": True, "normalization_rule_name": "identity"},
    "SentencePiece's defaults": {},  # nmt_nfkc, no byte fallback
    "no prefix": {"byte_fallback": True, "add_dummy_prefix": False},
    "no prefix, all spaces kept": {
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    },
}
PIECES_OF_TEXTS = [
    *["a", "b", "e", "th", "ing", "Hello", "once", "banana", " ", "  ", "\n", "\t", "\u3000"],
    *[
        "小",
        "兔子",
        "饕餮",
        "🐰",
        "，",
        "。",
        "“",
        "1",
        "2023",
        "½",
        "①",
        "ａ",
        "ﬁ",
        "é",
        "e\u0301",
    ],
    *["\u200b", "…", "-", "=", "▁", "<s>", "</s>", "<unk>", "<0x41>"],
]


def train(settings: dict[str, Any]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH + CHINESE) * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=480 if settings.get("byte_fallback") else 220,
        character_coverage=0.98,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return model.getvalue()


def texts(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(
            rng.choice(PIECES_OF_TEXTS) * rng.choice([1, 1, 1, 2, 3, 5])
            for _ in range(rng.randrange(20))
        )
        for _ in range(n)
    ]


@pytest.fixture
def auto_tokenizer(tmp_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")

    def load(model: bytes) -> Any:
        write_hf_tokenizer(SentencePieceModel.from_model(model), tmp_path, 64)
        return transformers.AutoTokenizer.from_pretrained(tmp_path)

    return load


def check_agreement(model: bytes, auto: Any, samples: list[str]) -> None:
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in samples:
        ids = sp.encode(text)
        assert auto(text, add_special_tokens=False).input_ids == ids, text
        assert auto(text).input_ids == [sp.bos_id(), *ids]
        for skip in (True, False):
            assert auto.decode(ids, skip_special_tokens=skip) == sp.decode(ids), (text, ids)


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_text_equal_sentencepiece(name: str, auto_tokenizer: Any) -> None:
    model = train(SETTINGS[name])
    samples = ["", " ", "   ", "  two  spaces  ", "a\nb", *ENGLISH, *CHINESE, *texts(1, 300)]
    check_agreement(model, auto_tokenizer(model), samples)


@pytest.mark.parametrize("name", ["tok512", "llama2", "meng"])
def test_real_models(shared: Path, auto_tokenizer: Any, name: str) -> None:
    model = (shared / "tokenizers" / f"{name}.model").read_bytes()
    auto = auto_tokenizer(model)
    runs = [before + " " * n + after for n in range(1, 70) for before in "a\n" for after in "b="]
    check_agreement(model, auto, runs + texts(2, 300))
    for case in json.loads((shared / "oracle" / "tokenize.json").read_bytes())[name]:
        assert auto(case["text"], add_special_tokens=False).input_ids == case["ids"]
        assert auto.decode(case["ids"], skip_special_tokens=True) == case["decoded"]


def test_streamed_pieces_join_to_the_text(auto_tokenizer: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    auto = auto_tokenizer(train(SETTINGS["as this package trains"]))

    class Collect(transformers.TextIteratorStreamer):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__(auto, skip_special_tokens=True)
            self.chunks: list[str] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.chunks.append(text)

    text = "Once 小兔子🐰 said:\nhello  饕餮 friend"
    streamer = Collect()
    for token_id in auto(text).input_ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    assert "".join(streamer.chunks) == text
    assert not any("\ufffd" in chunk for chunk in streamer.chunks)


def test_survives_transformers_saving(tmp_path: Path, auto_tokenizer: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = train(SETTINGS["as llama2.c trains"])
    auto_tokenizer(model).save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    check_agreement(model, again, texts(3, 50))


def test_batches_can_be_padded(auto_tokenizer: Any) -> None:
    auto = auto_tokenizer(train(SETTINGS["as llama2.c trains"]))
    batch = auto(["Once", "Once upon a time"], padding=True)
    short, long = batch.input_ids
    assert len(short) == len(long)
    assert short[0] == auto.eos_token_id  # on the left, where generation does not look
    assert batch.attention_mask[0][0] == 0


def test_llama2c_file_equals_the_exporters(shared: Path) -> None:
    for name in ("tok512", "llama2", "meng"):
        model = (shared / "tokenizers" / f"{name}.model").read_bytes()
        exported = (shared / "tokenizers" / f"{name}.bin").read_bytes()
        assert SentencePieceModel.from_model(model).to_llama2c() == exported


def test_llama2c_file_and_back() -> None:
    model = SentencePieceModel.from_model(train(SETTINGS["as llama2.c trains"]))
    back = SentencePieceModel.from_model(to_model_proto(model.to_llama2c(), "tokenizer.bin"))
    assert back.pieces == model.pieces
    assert back.special_ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_merges_never_make_bytes_or_control_pieces() -> None:
    model = SentencePieceModel.from_model(train(SETTINGS["as llama2.c trains"]))
    made = {left + right for left, right in merges(model)}
    assert "<s>" not in made
    assert not any(text.startswith("<0x") for text in made)
    assert "▁a" in made


def test_unigram_is_refused_by_name() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH * 3), model_writer=model, vocab_size=80, minloglevel=2
    )
    with pytest.raises(TokenizerError, match="unigram"):
        SentencePieceModel.from_model(model.getvalue())


@pytest.mark.parametrize("cut", [0, 1, 100, 1000])
def test_a_broken_file_is_refused(cut: int) -> None:
    with pytest.raises(TokenizerError):
        SentencePieceModel.from_model(train({})[:cut])
