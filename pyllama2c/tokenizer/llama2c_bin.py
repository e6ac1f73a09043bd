"""llama2.c's `tokenizer.bin`, translated into the SentencePiece model that it was exported from.

The file is an int32 `max_token_length`, then for each piece a float32 score, an int32 length and
that many bytes, up to the end of the file. It keeps the pieces and their scores but forgets how
text is normalised and which pieces are special. Both can be told from the vocabulary, and once
they are, the sentencepiece library gives the very ids that the original model gives: there is no
second tokenizer here that could differ from the first.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from itertools import count, takewhile

import numpy as np

from pyllama2c.errors import TokenizerError
from pyllama2c.tokenizer import model_proto as proto

_SPACE = "\u2581".encode()  # ▁, which the exporter wrote as a space
_HEADER_SIZE, _PIECE_HEADER = 4, struct.Struct("<4si")
_UNK, _BOS, _EOS, _PAD = b"<unk>", b"<s>", b"</s>", b"<pad>"
_EXPORTED_NAMES = {b"\n<s>\n": _BOS, b"\n</s>\n": _EOS}
_BYTE_PIECES = [b"<0x%02X>" % byte for byte in range(256)]
_PLUS_ZERO, _MINUS_ZERO = proto.float_bytes(0.0), proto.float_bytes(-0.0)


def to_model_proto(data: bytes, name: str) -> bytes:
    """The serialized SentencePiece ModelProto of a llama2.c `tokenizer.bin`.

    `name` is what error messages call the file. Raises TokenizerError, naming the field, where
    the file is truncated or holds what no SentencePiece vocabulary can.
    """
    pieces, scores = _parse(data, name)
    _check(pieces, scores, name)
    types = _piece_types(pieces, scores)
    byte_fallback = proto.BYTE in types.values()
    ordinary = [piece for i, piece in enumerate(pieces) if i not in types]

    unk_piece = next(pieces[i] for i, kind in types.items() if kind == proto.UNKNOWN)
    return b"".join(
        [
            *_piece_messages(pieces, scores, types),
            proto.bytes_field(
                proto.TRAINER_SPEC,
                proto.int_field(proto.MODEL_TYPE, proto.MODEL_TYPE_BPE)
                + proto.int_field(proto.BYTE_FALLBACK, byte_fallback)
                + proto.bytes_field(proto.UNK_PIECE, unk_piece)
                + proto.bytes_field(proto.BOS_PIECE, _BOS)
                + proto.bytes_field(proto.EOS_PIECE, _EOS),
            ),
            proto.bytes_field(proto.NORMALIZER_SPEC, _normalizer_spec(ordinary, byte_fallback)),
        ]
    )


def _parse(data: bytes, name: str) -> tuple[list[bytes], list[bytes]]:
    """The pieces as SentencePiece spells them, and their scores as stored (4 bytes each)."""
    if len(data) < _HEADER_SIZE:
        raise TokenizerError(
            f"{name}: max_token_length needs 4 bytes, the file has {len(data)}: "
            "not a tokenizer of llama2.c"
        )
    pieces: list[bytes] = []
    scores: list[bytes] = []
    pos, end, read = _HEADER_SIZE, len(data), _PIECE_HEADER.unpack_from
    while pos < end:
        if end - pos < _PIECE_HEADER.size:
            raise TokenizerError(
                f"{name}: piece {len(pieces)}: score and length need 8 bytes, "
                f"{end - pos} are left in the file"
            )
        score, length = read(data, pos)
        pos += _PIECE_HEADER.size
        if not 0 < length <= end - pos:
            raise TokenizerError(
                f"{name}: piece {len(pieces)}: length is {length}, "
                f"expected 1 to {end - pos} (what is left of the file)"
            )
        pieces.append(data[pos : pos + length])
        scores.append(score)
        pos += length
    if not pieces:
        raise TokenizerError(f"{name}: no pieces after max_token_length: the vocabulary is empty")
    return [_EXPORTED_NAMES.get(p, p).replace(b" ", _SPACE) for p in pieces], scores


def _check(pieces: list[bytes], scores: list[bytes], name: str) -> None:
    """Refuse what SentencePiece could not hold; fast where nothing is wrong."""
    try:
        b"\n".join(pieces).decode()
    except UnicodeDecodeError:
        for i, piece in enumerate(pieces):
            try:
                piece.decode()
            except UnicodeDecodeError:
                raise TokenizerError(
                    f"{name}: piece {i}: bytes {piece[:16]!r} are not UTF-8; "
                    "only exports of SentencePiece models are supported"
                ) from None
    if len(set(pieces)) < len(pieces):
        first: dict[bytes, int] = {}
        for i, piece in enumerate(pieces):
            if first.setdefault(piece, i) != i:
                raise TokenizerError(
                    f"{name}: piece {i}: {piece.decode()!r} is piece {first[piece]} already"
                )
    values = np.frombuffer(b"".join(scores), dtype="<f4")
    if not np.isfinite(values).all():
        i = int(np.argmin(np.isfinite(values)))
        raise TokenizerError(f"{name}: piece {i}: score is {values[i]}, expected a finite number")


def _piece_types(pieces: list[bytes], scores: list[bytes]) -> dict[int, int]:
    """The types by id, of the pieces that are more than ordinary text."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    types = {ids[piece]: proto.CONTROL for piece in (_BOS, _EOS) if piece in ids}
    byte_ids = [ids[piece] for piece in _BYTE_PIECES if piece in ids]
    if len(byte_ids) == len(_BYTE_PIECES):
        types.update(dict.fromkeys(byte_ids, proto.BYTE))
    # SentencePiece's trainer puts the pieces with a meaning of their own first, scored +0.0; the
    # first that it learned has -0.0, or at least follows the byte pieces.
    zeros = len(list(takewhile(lambda score: score == _PLUS_ZERO, scores)))
    if zeros < len(scores) and scores[zeros] == _MINUS_ZERO:
        meta_end = zeros
    else:
        meta_end = min(zeros, max((i for i, t in types.items() if t == proto.BYTE), default=0))
    for i in range(meta_end):
        types.setdefault(i, proto.CONTROL if pieces[i] == _PAD else proto.USER_DEFINED)
    # Every SentencePiece model has one unknown piece; llama2.c takes it to be the first.
    types[ids.get(_UNK, 0)] = proto.UNKNOWN
    return types


def _piece_messages(pieces: list[bytes], scores: list[bytes], types: dict[int, int]) -> list[bytes]:
    """One serialized ModelProto.SentencePiece after the other, written flat because they are many.

    The tags are those of PIECES (0x0a), PIECE_TEXT (0x0a), PIECE_SCORE (0x15), PIECE_TYPE (0x18).
    """
    messages = []
    for i, piece, score in zip(count(), pieces, scores):
        kind = b"\x18%c" % types[i] if i in types else b""  # left out, it is NORMAL
        size, rest = len(piece), b"\x15" + score + kind
        if size + len(rest) + 2 < 0x80:  # both lengths fit into one byte each
            messages.append(b"\x0a%c\x0a%c%b%b" % (size + len(rest) + 2, size, piece, rest))
        else:
            message = proto.bytes_field(proto.PIECE_TEXT, piece) + rest
            messages.append(proto.bytes_field(proto.PIECES, message))
    return messages


def _normalizer_spec(ordinary: list[bytes], byte_fallback: bool) -> bytes:
    """How the original model normalised text, as far as its vocabulary shows it.

    Whitespace was kept if some piece has two spaces in a row, or a line break: llama2.c's recipe
    trains on single lines and squeezes spaces, `pyllama2c tokenizer train` on whole stories as
    they are. A vocabulary with byte fallback follows either recipe, both of which leave the
    characters as they are. One without was made with SentencePiece's default rule, nmt_nfkc,
    unless it holds a piece that this rule would never have let through.
    (The rule as the installed library has it: a few characters that Unicode added or redefined
    since the model was trained may be normalised differently.)
    """
    keeps_spaces = any(_SPACE * 2 in piece or b"\n" in piece for piece in ordinary)
    spec = proto.int_field(proto.REMOVE_EXTRA_WHITESPACES, not keeps_spaces)
    if not byte_fallback:
        from sentencepiece import SentencePieceNormalizer

        normalizer = SentencePieceNormalizer(
            rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            escape_whitespaces=True,
            remove_extra_whitespaces=False,
        )
        text = [piece.decode() for piece in ordinary]
        if all(normalizer.normalize(piece) == piece for piece in text):
            spec += proto.bytes_field(proto.PRECOMPILED_CHARSMAP, _nmt_nfkc_charsmap())
    return spec


@lru_cache(maxsize=1)
def _nmt_nfkc_charsmap() -> bytes:
    """The compiled rule nmt_nfkc, 240 KB, from the sentencepiece library.

    Every model that is trained with the rule holds it, so we train the smallest one there is, in
    a few milliseconds. (`SentencePieceNormalizer` could tell, but not before version 0.2.2.)
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["a"]),
        model_writer=model,
        model_type="char",
        vocab_size=5,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,  # errors alone
    )
    for number, spec in proto.fields(model.getvalue()):
        if number == proto.NORMALIZER_SPEC and isinstance(spec, bytes):
            for name, value in proto.fields(spec):
                if name == proto.PRECOMPILED_CHARSMAP and isinstance(value, bytes):
                    return value
    raise TokenizerError("the sentencepiece library has no rule nmt_nfkc")
