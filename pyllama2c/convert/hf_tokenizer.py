"""A SentencePiece BPE model as ``tokenizer.json``, so that transformers' AutoTokenizer loads it.

What SentencePiece does in one go is spelled out as steps of the tokenizers library
(https://huggingface.co/docs/tokenizers/components): normalizers, BPE merges, decoders. The class
named in ``tokenizer_config.json`` is the general one, since LlamaTokenizer of transformers 5
ignores the file's normalizers and takes a text that begins with a space for one that does not.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pyllama2c.convert.huggingface import write_json
from pyllama2c.errors import TokenizerError
from pyllama2c.sentencepiece_model import SPACE, SentencePieceModel
from pyllama2c.tokenizer.model_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

# No text begins with more spaces than this; SentencePiece drops as many as there are.
_ALL_SPACES = 1 << 16
# Stands for an unknown piece while spaces are stripped: a code point that is no character.
_UNKNOWN_MARK = "\ufdd0"


def write_hf_tokenizer(
    model: SentencePieceModel, directory: Path, max_seq_len: int | None = None
) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``tokenizer.model``.

    Args:
        model: the tokenizer.
        directory: where; exists.
        max_seq_len: the model's context, in tokens, for truncation.

    Raises:
        TokenizerError: the model has pieces that the tokenizers library knows nothing like.
    """
    write_json(directory / "tokenizer.json", tokenizer_json(model))
    ids = model.special_ids
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # As in SentencePiece, "</s>" in a text is four characters and not the end of it.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # so that a batch of prompts ends where generation begins
    }
    for key, token_id in ids.items():
        settings[key.removesuffix("_id")] = model.pieces[token_id].text
    if max_seq_len is not None:
        settings["model_max_length"] = max_seq_len
    write_json(directory / "tokenizer_config.json", settings)
    (directory / "tokenizer.model").write_bytes(model.serialized)


def tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The content of a ``tokenizer.json``."""
    known = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)
    for piece in model.pieces:
        if piece.kind not in known:
            raise TokenizerError(f"the piece {piece.text!r} is marked unused, no BPE can do that")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": piece.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece.kind == CONTROL,
            }
            for token_id, piece in enumerate(model.pieces)
            # Not the unknown piece: it would vanish from texts as special tokens do.
            if piece.kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": _post_processor(model),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _unknown(model),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,  # SentencePiece makes one <unk> of several in a row, too
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece.text: token_id for token_id, piece in enumerate(model.pieces)},
            "merges": merges(model),
        },
    }


def merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the best first, those of one result together.

    SentencePiece merges by the score of the result, the leftmost of equals first; here each pair
    has a rank of its own. Several pairs that make the same piece compete only inside runs of one
    repeated pattern, where the leftmost pair is the one with the longer left part.
    """
    normal = {piece.text: piece for piece in model.pieces if piece.kind == NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for place, (text, piece) in enumerate(normal.items()):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                ranked.append((-piece.score, place, -cut, left, right))
    ranked.sort(key=lambda pair: pair[:3])
    return [(left, right) for _, _, _, left, right in ranked]


def _unknown(model: SentencePieceModel) -> str:
    for piece in model.pieces:
        if piece.kind == UNKNOWN:
            return piece.text
    raise TokenizerError("the SentencePiece model has no unknown piece")


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        steps.append(replace({"Regex": r"\A +"}, ""))
        steps.append(replace({"Regex": " {2,}"}, " "))
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})  # leaves an empty text empty
    steps.append(replace({"String": " "}, SPACE))
    if model.remove_extra_whitespaces:
        steps.append(replace({"Regex": rf"{SPACE}+\z"}, ""))
    return steps


def _decoders(model: SentencePieceModel) -> list[dict[str, Any]]:
    def replace(old: str, new: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    steps = [replace(_unknown(model), _UNKNOWN_MARK), replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        n_spaces = _ALL_SPACES if model.remove_extra_whitespaces else 1
        steps.append({"type": "Strip", "content": " ", "start": n_spaces, "stop": 0})
    steps.append(replace(_UNKNOWN_MARK, model.unk_surface))
    return steps


def _post_processor(model: SentencePieceModel) -> dict[str, Any] | None:
    """Put BOS before every text."""
    bos_id = model.special_ids.get("bos_token_id")
    if bos_id is None:
        return None
    bos = {"SpecialToken": {"id": model.bos_piece, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {
            model.bos_piece: {"id": model.bos_piece, "ids": [bos_id], "tokens": [model.bos_piece]}
        },
    }
