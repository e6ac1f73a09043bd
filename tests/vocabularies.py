"""Small SentencePiece vocabularies for tests, trained on the spot, and strings that are hard."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

_TEXT = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park.\n"
    "One day she saw a big red ball, and her mom said: no, no! It was too high, and Lily cried.\n"
    "从前有一个小女孩,名叫莉莉。她喜欢在花园里玩,也喜欢唱歌。一天她看见一只小兔子。\n"
    "The little dog and the little cat went to the park with Tim and Sam; they had so much fun.\n"
    "小兔子说:你好,莉莉!我们一起去玩吧。莉莉笑了,她说:好呀,我们走吧。\n"
)

IDENTITY = {"normalization_rule_name": "identity"}
# Every kind whose .bin says enough to give the same ids: name -> the trainer's options
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"vocab_size": 180},
    "byte fallback": {"vocab_size": 420, "byte_fallback": True, **IDENTITY},
    "own symbols": {
        "vocab_size": 430,
        "byte_fallback": True,
        "user_defined_symbols": ["<|user|>", "\n"],
        "pad_id": 3,
        **IDENTITY,
    },
    "own symbols, no bytes": {"vocab_size": 180, "user_defined_symbols": ["<|user|>", "，"]},
    "whole stories": {
        "vocab_size": 420,
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "sentence_iterator": [_TEXT],
        **IDENTITY,
    },
    "other special ids": {"vocab_size": 180, "unk_id": 2, "bos_id": 0, "eos_id": 1},
    "no BOS, no EOS": {"vocab_size": 180, "bos_id": -1, "eos_id": -1},
}
# Kinds that only a .model can express.
MODEL_ONLY: dict[str, dict[str, Any]] = {
    "whitespace kept": {
        "vocab_size": 420,
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        **IDENTITY,
    },
    "no dummy prefix": {"vocab_size": 180, "add_dummy_prefix": False},
    "neither": {"vocab_size": 180, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "unknown surface": {"vocab_size": 180, "unk_surface": " ?? "},
    "unigram": {"vocab_size": 100, "model_type": "unigram"},
}


@lru_cache
def train(recipe: str) -> bytes:
    """The serialized model of a recipe."""
    options = {
        "model_type": "bpe",
        "sentence_iterator": _TEXT.splitlines(),
        **{**RECIPES, **MODEL_ONLY}[recipe],
    }
    options["sentence_iterator"] = iter(options["sentence_iterator"])
    model = io.BytesIO()
    SentencePieceTrainer.Train(model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def pieces(model: bytes) -> list[tuple[str, float]]:
    """The pieces of a model and their scores."""
    processor = SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]


def to_bin(vocabulary: list[tuple[str, float]]) -> bytes:
    """Llama2.c's tokenizer.bin, as its exporter writes it."""
    names = {"<s>": "\n<s>\n", "</s>": "\n</s>\n"}
    encoded = [
        (names.get(piece, piece).replace("▁", " ").encode(), score) for piece, score in vocabulary
    ]
    parts = [struct.pack("<i", max(len(piece) for piece, _ in encoded))]
    parts += [struct.pack("<fi", score, len(piece)) + piece for piece, score in encoded]
    return b"".join(parts)


_FRAGMENTS = [
    *" \t\n\r\0\x07\x1b\x7f\x85\u00a0\u200b\u200d\u2028\u3000\ufeff▁",
    *["  ", "   ", "<s>", "</s>", "<unk>", "<0x41>", "<|user|>", "<pad>"],
    *[
        "😀",
        "👨‍👩‍👧",
        "🐰",
        "，",
        "ＡＢ",
        "é",
        "e\u0301",
        "饕餮",
        "ﬁ",
        "½",
        "\U0010ffff",
        "\ufffd",
        "𠮷",
    ],
    *["Once upon a time", "the little dog", "小兔子", "莉莉。", "Lily", "!", "a" * 40],
]
texts = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join)
"""Strings of everything that tokenizers stumble over; no lone surrogates."""


def ids_of(processor: SentencePieceProcessor) -> st.SearchStrategy[list[int]]:
    """Sequences of ids: ordinary, special, unknown, spaces, and bytes in and out of characters."""
    every = range(processor.vocab_size())
    spaces = [i for i in every if not processor.id_to_piece(i).strip("▁")]
    special = [i for i in every if processor.is_control(i) or processor.is_unknown(i)]
    choices = [st.sampled_from(every), st.sampled_from(spaces + special)]
    groups = st.one_of(choices).map(lambda i: [i])
    byte_ids = [i for i in every if processor.is_byte(i)]
    if byte_ids:
        whole = st.characters(exclude_categories=["Cs"]).map(lambda c: c.encode())
        part = whole.flatmap(lambda b: st.integers(1, len(b)).map(lambda n: b[:n]))
        wild = st.binary(min_size=1, max_size=3)
        lead = st.sampled_from(
            [bytes([b, c]) for b in b"\xe0\xed\xf0\xf4\xc1\xc2" for c in b"\x80\x9f\xa0\xbf"]
        )
        groups |= st.one_of(whole, part, wild, lead).map(lambda b: [byte_ids[i] for i in b])
    return st.lists(groups, max_size=8).map(lambda lists: [i for group in lists for i in group])
