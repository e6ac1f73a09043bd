"""The few fields of SentencePiece's model file that this package reads or writes itself.

A `.model` file is one serialized protobuf message, `ModelProto`, described by
``sentencepiece_model.proto`` in the SentencePiece sources. The sentencepiece library reads it
without help; these few functions exist to build one from another format and to look up the
handful of settings that the library does not tell. (Encoding: a field is a varint tag
``number << 3 | wire type`` followed by a varint, 4 or 8 bytes, or a length and that many bytes.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Piece types (ModelProto.SentencePiece.Type)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

# Field numbers of ModelProto, ModelProto.SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK, UNK_SURFACE = 3, 35, 44
UNK_PIECE, BOS_PIECE, EOS_PIECE = 45, 46, 47
PRECOMPILED_CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 2, 3, 4
MODEL_TYPE_BPE = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def int_field(number: int, value: int) -> bytes:
    """A field that holds an integer, an enum or a bool."""
    return varint(number << 3 | _VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def float_field(number: int, value: float) -> bytes:
    """A field that holds a float of 32 bits."""
    return varint(number << 3 | _FIXED32) + float_bytes(value)


def _read_varint(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift == 70:  # ten bytes hold 64 bits; a whole file of them would take for ever
            raise ValueError(f"the number that ends at byte {pos} is too long")


def fields(data: bytes, pos: int = 0) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message as (number, value). Raises ValueError where it is malformed."""
    while pos < len(data):
        try:
            tag, pos = _read_varint(data, pos)
            wire_type = tag & 7
            if wire_type == _VARINT:
                value, pos = _read_varint(data, pos)
                yield tag >> 3, value
                continue
            if wire_type == _BYTES:
                size, pos = _read_varint(data, pos)
            else:
                size = {_FIXED32: 4, _FIXED64: 8}[wire_type]
        except (IndexError, KeyError):
            raise ValueError(f"malformed protobuf field at byte {pos}") from None
        if size > len(data) - pos:
            raise ValueError(f"protobuf field at byte {pos} exceeds its message")
        yield tag >> 3, data[pos : pos + size]
        pos += size


@dataclass(frozen=True, slots=True)
class DecodingSettings:
    """What SentencePiece's decoder takes from the model file beside the pieces."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @classmethod
    def from_model(cls, model: bytes) -> DecodingSettings:
        """Read from a serialized ModelProto. Raises ValueError where it is malformed."""
        # The pieces come first, tens of thousands of short messages: step over them.
        pos, size = 0, len(model)
        while pos + 1 < size and model[pos] == PIECES << 3 | _BYTES and model[pos + 1] < 0x80:
            pos += 2 + model[pos + 1]
        found = {ADD_DUMMY_PREFIX: True, REMOVE_EXTRA_WHITESPACES: True}
        for number, value in fields(model, pos):
            if number == NORMALIZER_SPEC and isinstance(value, bytes):
                for name, setting in fields(value):
                    if name in found:
                        found[name] = bool(setting)
        return cls(found[ADD_DUMMY_PREFIX], found[REMOVE_EXTRA_WHITESPACES])


def float_bytes(value: float) -> bytes:
    """A float as protobuf and llama2.c's files hold it: 4 bytes, little-endian."""
    return struct.pack("<f", value)
