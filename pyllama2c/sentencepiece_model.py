"""What is inside a SentencePiece model, for those who turn it into another format.

The sentencepiece library encodes and decodes but does not tell all of a model's settings. The file
format is ``sentencepiece_model.proto`` of https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyllama2c.errors import TokenizerError
from pyllama2c.tokenizer import model_proto as proto

SPACE = "\u2581"  # ▁ stands for a space inside pieces
_BPE = proto.MODEL_TYPE_BPE
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
# Field numbers that the tokenizer itself has no need for.
_WHITESPACE_AS_SUFFIX = 24
_ESCAPE_WHITESPACES = 5


@dataclass(frozen=True, slots=True)
class Piece:
    """A vocabulary entry; ``kind`` is one of the types in `pyllama2c.tokenizer.model_proto`."""

    text: str
    score: float
    kind: int = proto.NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """A BPE model of SentencePiece, read from its file.

    Attributes:
        serialized: the file's bytes.
        pieces: the vocabulary; a piece's id is its place.
        charsmap: compiled rules that normalise text first; empty for none.
        add_dummy_prefix: a space is put before every text.
        remove_extra_whitespaces: spaces at both ends are dropped, several in a row are made one.
        byte_fallback: characters without a piece are spelled in UTF-8 bytes.
        unk_surface: what the unknown piece decodes to.
        bos_piece, eos_piece: text of the pieces that begin and end a story.
    """

    serialized: bytes
    pieces: tuple[Piece, ...]
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    byte_fallback: bool = False
    unk_surface: str = " \u2047 "
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"

    @classmethod
    def from_model(cls, data: bytes) -> SentencePieceModel:
        """Read the bytes of a ``tokenizer.model``.

        Raises:
            TokenizerError: it is none, or of a kind that other formats cannot express.
        """
        try:
            return cls._parse(data)
        except (ValueError, AttributeError, TypeError, struct.error) as error:
            if isinstance(error, TokenizerError):
                raise
            raise TokenizerError(f"not a SentencePiece model: {error}") from None

    @classmethod
    def _parse(cls, data: bytes) -> SentencePieceModel:
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in proto.fields(data):
            if number == proto.PIECES:
                pieces.append(_parse_piece(_bytes(value)))
            elif number == proto.TRAINER_SPEC:
                trainer = dict(proto.fields(_bytes(value)))
            elif number == proto.NORMALIZER_SPEC:
                normalizer = dict(proto.fields(_bytes(value)))
        if not pieces:
            raise TokenizerError("not a SentencePiece model: it has no pieces")
        kind = _int(trainer.get(proto.MODEL_TYPE, 1))
        if kind != _BPE:
            raise TokenizerError(
                f"the SentencePiece model is of the type {_MODEL_TYPES.get(kind, kind)}, "
                "only BPE is supported"
            )
        if trainer.get(_WHITESPACE_AS_SUFFIX, 0) or not normalizer.get(_ESCAPE_WHITESPACES, 1):
            raise TokenizerError(
                "the SentencePiece model treats spaces in its own way "
                "(treat_whitespace_as_suffix or no escape_whitespaces), which is not supported"
            )
        return cls(
            data,
            tuple(pieces),
            charsmap=_bytes(normalizer.get(proto.PRECOMPILED_CHARSMAP, b"")),
            add_dummy_prefix=bool(normalizer.get(proto.ADD_DUMMY_PREFIX, 1)),
            remove_extra_whitespaces=bool(normalizer.get(proto.REMOVE_EXTRA_WHITESPACES, 1)),
            byte_fallback=bool(trainer.get(proto.BYTE_FALLBACK, 0)),
            unk_surface=_bytes(trainer.get(proto.UNK_SURFACE, cls.unk_surface.encode())).decode(),
            bos_piece=_bytes(trainer.get(proto.BOS_PIECE, b"<s>")).decode(),
            eos_piece=_bytes(trainer.get(proto.EOS_PIECE, b"</s>")).decode(),
        )

    def control_id(self, text: str) -> int | None:
        """The id of a control piece, None if there is none of that text."""
        for token_id, piece in enumerate(self.pieces):
            if piece.text == text and piece.kind == proto.CONTROL:
                return token_id
        return None

    @property
    def special_ids(self) -> dict[str, int]:
        """``bos_token_id``, ``eos_token_id`` and, the same, ``pad_token_id``; those there are."""
        ids = {
            "bos_token_id": self.control_id(self.bos_piece),
            "eos_token_id": self.control_id(self.eos_piece),
            "pad_token_id": self.control_id(self.eos_piece),
        }
        return {key: token_id for key, token_id in ids.items() if token_id is not None}

    def to_llama2c(self) -> bytes:
        """The bytes of a ``tokenizer.bin``, as llama2.c's ``tokenizer.py`` writes it."""
        decorated = {
            token_id: f"\n{self.pieces[token_id].text}\n"
            for key, token_id in self.special_ids.items()
            if key != "pad_token_id"
        }
        records: list[bytes] = []
        longest = 0
        for token_id, piece in enumerate(self.pieces):
            text = decorated.get(token_id, piece.text).replace(SPACE, " ").encode()
            longest = max(longest, len(text))
            records.append(struct.pack("<fi", piece.score, len(text)) + text)
        return struct.pack("<i", longest) + b"".join(records)


def _parse_piece(message: bytes) -> Piece:
    found = dict(proto.fields(message))
    (score,) = struct.unpack("<f", _bytes(found.get(proto.PIECE_SCORE, b"\0\0\0\0")))
    kind = _int(found.get(proto.PIECE_TYPE, proto.NORMAL))
    return Piece(_bytes(found[proto.PIECE_TEXT]).decode(), score, kind)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field holds a number instead of bytes")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field holds bytes instead of a number")
    return value
