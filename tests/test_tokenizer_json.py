"""tokenizer.json alone: the ids of the original where they can be had, a refusal where not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_hf_tokenizer import CHINESE, ENGLISH, SETTINGS, texts, train

from pyllama2c.convert.hf_tokenizer import tokenizer_json
from pyllama2c.errors import TokenizerError
from pyllama2c.sentencepiece_model import SentencePieceModel
from pyllama2c.tokenizer import Tokenizer, find_tokenizer
from pyllama2c.tokenizer.tokenizer_json import to_model_proto


def back_from(content: dict[str, Any]) -> Tokenizer:
    return Tokenizer(to_model_proto(json.dumps(content).encode(), "tokenizer.json"))


def check_same(back: Tokenizer, original: Tokenizer, samples: list[str]) -> None:
    assert back.vocab_size == original.vocab_size
    assert (back.bos_id, back.eos_id, back.unk_id) == (1, 2, 0)
    for text in samples:
        ids = original.encode(text)
        assert back.encode(text) == ids, text
        assert back.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("name", SETTINGS)
def test_there_and_back(name: str) -> None:
    model = train(SETTINGS[name])
    content = tokenizer_json(SentencePieceModel.from_model(model))
    check_same(back_from(content), Tokenizer(model), [*ENGLISH, *CHINESE, *texts(4, 300)])


@pytest.mark.parametrize("name", ["tok512", "llama2", "meng"])
def test_real_models(shared: Path, name: str) -> None:
    model = (shared / "tokenizers" / f"{name}.model").read_bytes()
    back = back_from(tokenizer_json(SentencePieceModel.from_model(model)))
    check_same(back, Tokenizer(model), texts(5, 100))
    for case in json.loads((shared / "oracle" / "tokenize.json").read_bytes())[name]:
        assert back.encode(case["text"], bos=False) == case["ids"]


def test_what_transformers_saves(tmp_path: Path) -> None:
    """LlamaTokenizer makes the merges itself and spells spaces in its own way."""
    transformers = pytest.importorskip("transformers")
    model = train(SETTINGS["as this package trains"])
    pieces = SentencePieceModel.from_model(model)
    content = tokenizer_json(pieces)["model"]
    made = transformers.LlamaTokenizer(vocab=content["vocab"], merges=content["merges"])
    made.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    found = find_tokenizer(tmp_path, len(pieces.pieces))
    assert found is not None
    assert found.kind == "Hugging Face"
    # It takes a leading space for the one that is put before every text.
    samples = [text for text in [*ENGLISH, *CHINESE, *texts(6, 200)] if text[:1] not in (" ", "▁")]
    plain = [text for text in samples if "<s>" not in text and "</s>" not in text]
    for text in plain:
        ids = made(text.replace("<unk>", ""), add_special_tokens=False).input_ids
        assert found.encode(text.replace("<unk>", ""), bos=False) == ids, text


def test_names_of_bos_and_eos(tmp_path: Path) -> None:
    content = tokenizer_json(SentencePieceModel.from_model(train({})))
    for token_id, name in ((1, "[BOS]"), (2, "[EOS]")):
        old = content["added_tokens"][token_id - 1]["content"]
        content["added_tokens"][token_id - 1]["content"] = name
        content["model"]["vocab"][name] = content["model"]["vocab"].pop(old)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = {"bos_token": "[BOS]", "eos_token": {"content": "[EOS]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert (found.bos_id, found.eos_id) == (1, 2)


def edits() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    """Name -> (how to break the content, what the error says)"""

    def model(**change: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["model"].update(change)

    def top(**change: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content.update(change)

    def added(**settings: Any) -> Callable[[dict[str, Any]], Any]:
        def add(content: dict[str, Any]) -> None:
            token_id = len(content["model"]["vocab"])
            content["added_tokens"].append({"id": token_id, "content": "<|user|>", **settings})

        return add

    byte_level = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}
    return {
        "unigram": (model(type="Unigram"), "Unigram"),
        "byte level": (top(pre_tokenizer=byte_level), "byte-level"),
        "suffix": (model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        "dropout": (model(dropout=0.1), "dropout"),
        "ignore merges": (model(ignore_merges=True), "ignore_merges"),
        "fuse": (model(byte_fallback=False, fuse_unk=False), "fuse_unk"),
        "no spaces": (top(normalizer=None), "spaces are not replaced"),
        "lowercase": (top(normalizer={"type": "Lowercase"}), "Lowercase"),
        "split": (top(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        "unknown": (model(unk_token="<who>"), "<who>"),
        "merge missing": (lambda c: c["model"]["merges"].pop(), "are not merged into"),
        "hole": (lambda c: c["model"]["vocab"].pop("<0x41>"), "ids are not"),
        "twice": (lambda c: c["added_tokens"][0].update(content="<t>"), "id 1 is both"),
        "lstrip": (added(lstrip=True), "lstrip of the added token '<.user.>' is True"),
        "rstrip": (added(rstrip=True), "rstrip of the added token '<.user.>' is True"),
        "single word": (added(single_word=True), "single_word of the added token"),
        "no model": (lambda c: c.pop("model"), "not a tokenizer.json"),
        "vocab": (model(vocab=["a"]), "not a tokenizer.json"),
        "merges": (model(merges=[["a"]]), "not a tokenizer.json"),
        "model": (top(model=None), "not a tokenizer.json"),
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return tokenizer_json(SentencePieceModel.from_model(train(SETTINGS["as llama2.c trains"])))


@pytest.mark.parametrize("name", edits())
def test_what_sentencepiece_cannot_do_is_refused(content: dict[str, Any], name: str) -> None:
    edit, message = edits()[name]
    broken = copy.deepcopy(content)
    edit(broken)
    with pytest.raises(TokenizerError, match=message):
        back_from(broken)


def test_special_tokens_may_strip_spaces(content: dict[str, Any]) -> None:
    """They are never read from text, so that does not matter."""
    stripping = copy.deepcopy(content)
    stripping["added_tokens"][1].update(lstrip=True, rstrip=True)
    assert back_from(stripping).encode("a </s> b") == back_from(content).encode("a </s> b")


def test_merges_in_another_order_are_refused(content: dict[str, Any]) -> None:
    broken = copy.deepcopy(content)
    merges = broken["model"]["merges"]
    made = ["".join(pair) for pair in merges]
    twice = next(i for i in range(len(made) - 1) if made[i] == made[i + 1])
    merges.append(merges.pop(twice))
    with pytest.raises(TokenizerError, match="apart"):
        back_from(broken)


@pytest.mark.parametrize("data", [b"{", b"{}", b"[1]", b'{"model": 1}', b"{" * 100_000])
def test_no_tokenizer_json_at_all(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        to_model_proto(data, "tokenizer.json")
