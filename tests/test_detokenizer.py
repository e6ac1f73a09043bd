"""Streamed text: the pieces joined are the whole, and no piece holds half a character."""

from __future__ import annotations

from functools import lru_cache

import pytest
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pyllama2c import ArgumentError, Detokenizer, Tokenizer

RECIPES = [*vocabularies.RECIPES, *vocabularies.MODEL_ONLY]
HALF = "\ufffd"


@lru_cache
def loaded(recipe: str) -> tuple[SentencePieceProcessor, Tokenizer]:
    model = vocabularies.train(recipe)
    return SentencePieceProcessor(model_proto=model), Tokenizer(model)


def stream(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    return [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in data]


@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=200)
@given(data=st.data())
def test_joined_pieces_are_sentencepieces_text(recipe: str, data: st.DataObject) -> None:
    processor, tokenizer = loaded(recipe)
    ids = data.draw(vocabularies.ids_of(processor))
    assert stream(Detokenizer(tokenizer), ids) == processor.decode(ids)
    assert tokenizer.decode(ids) == processor.decode(ids)


@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=200)
@given(data=st.data())
def test_text_after_a_prompt_continues_it(recipe: str, data: st.DataObject) -> None:
    processor, tokenizer = loaded(recipe)
    ids = data.draw(vocabularies.ids_of(processor))
    cut = data.draw(st.integers(0, len(ids)))
    shown = Detokenizer(tokenizer)
    before = "".join(shown.push(i) for i in ids[:cut])  # without a character still unfinished
    after = stream(Detokenizer(tokenizer, ids[:cut]), ids[cut:])
    assert before + after == processor.decode(ids)
    if before == processor.decode(ids[:cut]):
        assert after == processor.decode(ids).removeprefix(before)
    # The same by way of saving and restoring.
    state = shown.state()
    assert len(state) <= 4
    assert stream(Detokenizer.from_state(tokenizer, state), ids[cut:]) == after


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[HALF]), max_size=6))
def test_characters_come_whole(text: str) -> None:
    _, tokenizer = loaded("byte fallback")
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(i) for i in byte_ids(tokenizer, text.encode())]
    assert [piece for piece in pushed if piece] == list(text)
    assert detokenizer.flush() == ""


def test_an_emoji_arrives_with_its_last_byte() -> None:
    _, tokenizer = loaded("byte fallback")
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(i) for i in byte_ids(tokenizer, "🐰!".encode())]
    assert pushed == ["", "", "", "🐰", "!"]


def test_invalid_bytes_come_as_soon_as_they_are_certain() -> None:
    _, tokenizer = loaded("byte fallback")
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(i) for i in byte_ids(tokenizer, b"\xe4\xbda\xff")]
    assert pushed == ["", "", HALF * 2 + "a", HALF]
    for i in byte_ids(tokenizer, b"\xf0\x9f\x90"):
        assert detokenizer.push(i) == ""
    assert detokenizer.flush() == HALF * 3
    assert detokenizer.flush() == ""


def test_a_prompt_may_end_inside_a_character() -> None:
    _, tokenizer = loaded("byte fallback")
    start, end = "🐰".encode()[:2], "🐰".encode()[2:]
    prompt = [tokenizer.bos_id, *byte_ids(tokenizer, start)]
    assert stream(Detokenizer(tokenizer, prompt), byte_ids(tokenizer, end)) == "🐰"


def test_only_the_first_space_is_dropped() -> None:
    _, tokenizer = loaded("byte fallback")
    ids = tokenizer.encode("a little dog")
    assert stream(Detokenizer(tokenizer), ids) == "a little dog"
    assert stream(Detokenizer(tokenizer, ids), tokenizer.encode("dog", bos=False)) == " dog"


@pytest.mark.parametrize("token_id", [-1, 420, "x", None])
def test_foreign_ids_are_refused(token_id: object) -> None:
    _, tokenizer = loaded("byte fallback")
    with pytest.raises(ArgumentError, match="token id"):
        Detokenizer(tokenizer).push(token_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state", [b"", b"\2", b"\0a", b"\0\x80", b"\1\xe4", b"\0\xe4\xbd\xa0", b"\0\xe4a", b"\0\xff"]
)
def test_states_that_cannot_be_are_refused(state: bytes) -> None:
    _, tokenizer = loaded("byte fallback")
    with pytest.raises(ArgumentError, match="state"):
        Detokenizer.from_state(tokenizer, state)
