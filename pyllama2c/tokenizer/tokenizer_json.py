"""Hugging Face's `tokenizer.json`, translated into the SentencePiece model that it stands for.

transformers 5 writes this file and no `tokenizer.model`, even where the tokenizer came from
SentencePiece. Such a file can be turned back, and then the sentencepiece library gives the same
ids. One that SentencePiece could not express (byte-level BPE, merges that it would not make, other
normalisers) is refused with the reason: a tokenizer that is nearly right is wrong.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyllama2c.errors import TokenizerError
from pyllama2c.tokenizer import model_proto as proto
from pyllama2c.tokenizer.tokenizer import UnsupportedTokenizerError

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# How `pyllama2c.convert` spells SentencePiece's treatment of spaces, as (pattern, replacement).
_EXTRA_SPACES = {(r"\A +", ""), (" {2,}", " "), (rf"{_SPACE}+\z", "")}


def to_model_proto(data: bytes, name: str, settings: bytes = b"{}") -> bytes:
    """The serialized SentencePiece ModelProto that a `tokenizer.json` stands for.

    `name` is what error messages call the file; `settings` is the `tokenizer_config.json` beside
    it, which knows the names of BOS and EOS. Raises TokenizerError where the file is malformed or
    holds what no SentencePiece model can.
    """
    try:
        content, config = json.loads(data), json.loads(settings)
        return _translate(content, config)
    except TokenizerError as error:
        raise UnsupportedTokenizerError(f"{name}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"{name}: not a tokenizer.json: {type(error).__name__}: {error}"
        ) from None


def _translate(content: dict[str, Any], config: dict[str, Any]) -> bytes:
    model = content["model"]
    _check_model(content, model)
    normalizer = _normalizer_spec(content)
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    pieces = _pieces(model["vocab"], added)
    bos, eos = (_token_name(config.get(key), default) for key, default in _NAMES.items())
    unknown = model.get("unk_token") or "<unk>"
    byte_fallback = bool(model.get("byte_fallback"))

    kinds = dict.fromkeys(pieces, proto.NORMAL)
    for token_id, token in added.items():
        is_control = token.get("special") or pieces[token_id] in (bos, eos)
        kinds[pieces[token_id]] = proto.CONTROL if is_control else proto.USER_DEFINED
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key) and not is_control:  # control pieces are never read from text
                raise TokenizerError(
                    f"{key} of the added token {pieces[token_id]!r} is {token[key]!r}, "
                    "which SentencePiece does not know"
                )
    if byte_fallback:
        kinds |= {piece: proto.BYTE for piece in pieces if _BYTE_PIECE.fullmatch(piece)}
    if unknown not in kinds:
        raise TokenizerError(f"the unknown piece {unknown!r} is not in the vocabulary")
    kinds[unknown] = proto.UNKNOWN
    normal = {piece for piece, kind in kinds.items() if kind == proto.NORMAL}
    scores = _scores(model["merges"], normal)

    messages = []
    for piece in pieces:
        message = (
            proto.bytes_field(proto.PIECE_TEXT, piece.encode())
            + proto.float_field(proto.PIECE_SCORE, scores.get(piece, 0.0))
            + proto.int_field(proto.PIECE_TYPE, kinds[piece])
        )
        messages.append(proto.bytes_field(proto.PIECES, message))
    trainer = (
        proto.int_field(proto.MODEL_TYPE, proto.MODEL_TYPE_BPE)
        + proto.int_field(proto.BYTE_FALLBACK, byte_fallback)
        + proto.bytes_field(proto.UNK_PIECE, unknown.encode())
        + proto.bytes_field(proto.BOS_PIECE, bos.encode())
        + proto.bytes_field(proto.EOS_PIECE, eos.encode())
    )
    messages.append(proto.bytes_field(proto.TRAINER_SPEC, trainer))
    messages.append(proto.bytes_field(proto.NORMALIZER_SPEC, normalizer))
    return b"".join(messages)


_NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def _token_name(value: Any, default: str) -> str:
    """A token in tokenizer_config.json is a string, or an object with its settings."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _check_model(content: dict[str, Any], model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise TokenizerError(f"the tokenizer's model is {kind}, only BPE is supported")
    for key in ("pre_tokenizer", "decoder"):
        if any(step["type"] == "ByteLevel" for step in _steps(content.get(key))):
            raise TokenizerError("byte-level BPE (as GPT-2 and Llama 3 have) is not supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise TokenizerError(f"{key} is {model[key]!r}, which SentencePiece does not know")
    if not model.get("byte_fallback") and not model.get("fuse_unk"):
        raise TokenizerError("fuse_unk is false, but SentencePiece joins unknown characters")


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, which may be one or a sequence."""
    if part is None:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            return [inner for step in part[key] for inner in _steps(step)]
    return [part]


def _normalizer_spec(content: dict[str, Any]) -> bytes:
    charsmap = b""
    prefix = escapes = False
    extra_spaces = set()
    for step in _steps(content.get("normalizer")):
        replaced = _replacement(step)
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = True
        elif replaced == (" ", _SPACE):
            escapes = True
        elif replaced in _EXTRA_SPACES:
            extra_spaces.add(replaced)
        else:
            raise TokenizerError(f"the normalizer {_short(step)} is not supported")
    for step in _steps(content.get("pre_tokenizer")):
        if step["type"] != "Metaspace" or step["replacement"] != _SPACE or step.get("split", True):
            raise TokenizerError(f"the pre-tokenizer {_short(step)} is not supported")
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never")
        prefix, escapes = prefix or scheme != "never", True
    if not escapes:
        raise TokenizerError("spaces are not replaced by ▁ as SentencePiece does")
    if extra_spaces not in (set(), _EXTRA_SPACES):
        raise TokenizerError("spaces are squeezed in a way that SentencePiece does not know")
    return (
        proto.bytes_field(proto.PRECOMPILED_CHARSMAP, charsmap)
        + proto.int_field(proto.ADD_DUMMY_PREFIX, prefix)
        + proto.int_field(proto.REMOVE_EXTRA_WHITESPACES, bool(extra_spaces))
    )


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] != "Replace":
        return None
    (pattern,) = step["pattern"].values()  # {"String": ...} or {"Regex": ...}
    return pattern, step["content"]


def _short(step: Mapping[str, Any]) -> str:
    return f"{json.dumps(step, ensure_ascii=False):.80}"


def _pieces(vocab: dict[str, int], added: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The pieces in the order of their ids, which have to be 0, 1, 2, ..."""
    by_id = {token_id: piece for piece, token_id in vocab.items()}
    for token_id, token in added.items():
        if by_id.setdefault(token_id, token["content"]) != token["content"]:
            raise TokenizerError(
                f"id {token_id} is both {by_id[token_id]!r} and {token['content']!r}"
            )
    pieces = [by_id[i] for i in range(len(by_id)) if i in by_id]
    if len(pieces) != len(by_id) or len(set(pieces)) != len(pieces):
        raise TokenizerError(f"the ids are not 0 to {len(by_id) - 1}, each of another piece")
    return pieces


def _scores(merges: Iterable[str | list[str]], normal: set[str]) -> dict[str, float]:
    """Scores that make SentencePiece merge in the order of the list.

    SentencePiece merges any two pieces whose union is a piece, so every such pair has to be in
    the list, those of one result side by side.
    """
    scores: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    last = None
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made = left + right
        if made not in normal:
            continue  # spells a special token, which SentencePiece never reads from text
        if made != last and made in scores:
            raise TokenizerError(f"merges that make {made!r} are ranked apart from each other")
        if made not in scores:
            scores[made] = -float(len(scores))
        last = made
        seen.add((left, right))
    for piece in normal:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair not in seen and pair[0] in normal and pair[1] in normal:
                raise TokenizerError(
                    f"{pair[0]!r} and {pair[1]!r} are not merged into {piece!r}, as SentencePiece "
                    "would: this vocabulary was not made by SentencePiece"
                )
    return scores
