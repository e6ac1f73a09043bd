"""`Tokenizer`: text to ids and back, by the sentencepiece library."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pyllama2c.arguments import as_path, as_utf8
from pyllama2c.errors import ArgumentError, TokenizerError, shown
from pyllama2c.tokenizer.model_proto import (
    ADD_DUMMY_PREFIX,
    NORMALIZER_SPEC,
    REMOVE_EXTRA_WHITESPACES,
    DecodingSettings,
    bytes_field,
    int_field,
)

MAX_FILE_SIZE = 256 << 20  # far beyond any vocabulary; a file larger than this is something else
_SPACE = "\u2581"  # ▁, SentencePiece's visible space


class UnsupportedTokenizerError(TokenizerError):
    """The file is in order, but no SentencePiece model can do what it asks for."""


class Tokenizer:
    """A SentencePiece vocabulary, from a `.model`, a llama2.c `.bin` or a `tokenizer.json` file.

    Make one with `Tokenizer.load(path)`. Safe to share between threads; can be pickled.
    """

    def __init__(self, model: bytes, *, path: Path | None = None, kind: str = "SentencePiece"):
        """From a serialized SentencePiece ModelProto.

        Raises TokenizerError if it is none, ArgumentError if it is no bytes.
        """
        from sentencepiece import SentencePieceProcessor

        name = str(path) if path else "model"
        if not isinstance(model, bytes):
            raise ArgumentError(
                f"model is {shown(model)}, expected the bytes of one; for a path, Tokenizer.load"
            )
        self._processor = SentencePieceProcessor()
        try:
            settings = DecodingSettings.from_model(model)
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split()) or "it cannot be parsed"
            raise TokenizerError(f"{name}: not a SentencePiece model: {reason}") from None
        self.path = path
        """The file this came from, if any."""
        self.kind = kind
        """"SentencePiece", "llama2.c" or "Hugging Face"."""
        self.vocab_size: int = self._processor.get_piece_size()
        """How many pieces there are; ids are below it."""
        self.bos_id: int = self._processor.bos_id()
        """The id that begins a text; -1 if the vocabulary has none."""
        self.eos_id: int = self._processor.eos_id()
        """The id that ends a text; -1 if the vocabulary has none."""
        self.unk_id: int = self._processor.unk_id()
        """The id of what the vocabulary cannot spell."""
        self.strips_leading_space = settings.add_dummy_prefix or settings.remove_extra_whitespaces
        self._squeezes_spaces = settings.remove_extra_whitespaces
        self.surfaces: dict[int, str | bytes] = {}
        """What `surface()` has returned so far."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `.model`, `.bin` or `tokenizer.json` file, told apart by its content.

        Raises TokenizerError if the file cannot be read or is none of them; names the field.
        """
        path = as_path("tokenizer", path, TokenizerError)
        try:
            size = path.stat().st_size
            if size > MAX_FILE_SIZE:
                raise TokenizerError(f"{path}: {size} bytes are too many for a tokenizer")
            data = path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        if data[:1] == b"{":
            from pyllama2c.tokenizer import tokenizer_json  # what few need is imported when needed

            settings = path.with_name("tokenizer_config.json")
            beside = settings.read_bytes() if settings.is_file() else b"{}"
            model = tokenizer_json.to_model_proto(data, str(path), beside)
            return cls(model, path=path, kind="Hugging Face")
        # A ModelProto begins with a piece that begins with its text: 0a, a length, 0a. In a .bin
        # these bytes belong to max_token_length, whose upper two are zero.
        if data[:1] == b"\x0a" and data[2:4] != b"\0\0":
            return cls(data, path=path)
        from pyllama2c.tokenizer import llama2c_bin

        return cls(llama2c_bin.to_model_proto(data, str(path)), path=path, kind="llama2.c")

    @property
    def serialized(self) -> bytes:
        """The vocabulary as the bytes of a `.model` file."""
        model: bytes = self._processor.serialized_model_proto()
        return model

    def __repr__(self) -> str:
        return f"<Tokenizer {self.path or ''} ({self.kind}, {self.vocab_size} pieces)>"

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text, those that SentencePiece gives.

        `bos` and `eos` put the id of the beginning before and of the end behind, if the vocabulary
        has one. Special pieces are never read from the text: "<s>" is three characters.
        Raises ArgumentError if the text holds a lone surrogate, which no encoding can express.
        """
        ids: list[int] = self._processor.encode(as_utf8("text", text))
        if bos and self.bos_id >= 0:
            ids.insert(0, self.bos_id)
        if eos and self.eos_id >= 0:
            ids.append(self.eos_id)
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of a text that goes on where another one ends: no BOS, and no space in between.

        (SentencePiece's encoder puts a space before whatever it is given.) Spaces are kept as they
        are. Raises ArgumentError as `encode` does.
        """
        ids: list[int] = self._continuation_processor.encode(as_utf8("text", text))
        return ids

    @cached_property
    def _continuation_processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        # Where a message has a field twice, protobuf merges the two.
        plain = int_field(ADD_DUMMY_PREFIX, 0) + int_field(REMOVE_EXTRA_WHITESPACES, 0)
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(self.serialized + bytes_field(NORMALIZER_SPEC, plain))
        return processor

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as SentencePiece decodes them. BOS and EOS are invisible.

        Raises ArgumentError for an id that the vocabulary does not have.
        """
        if not hasattr(ids, "__iter__"):
            raise ArgumentError(f"ids is {shown(ids)}, expected a sequence of token ids")
        text: str = self._processor.decode([self._checked(i) for i in ids])
        return text

    def id_to_piece(self, token_id: int) -> str:
        """The piece as the vocabulary spells it: "▁Once", "<s>", "<0x0A>".

        Raises ArgumentError for an id that the vocabulary does not have.
        """
        piece: str = self._processor.id_to_piece(self._checked(token_id))
        return piece

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece as the vocabulary spells it; `unk_id` if there is no such piece.

        Raises ArgumentError as `encode` does.
        """
        as_utf8("piece", piece)  # sentencepiece refuses what this does, in words of its own
        token_id: int = self._processor.piece_to_id(piece)
        return token_id

    def check_fits(self, vocab_size: int) -> None:
        """Raise TokenizerError, naming both sizes, unless this is a vocabulary of `vocab_size`."""
        if self.vocab_size != vocab_size:
            raise TokenizerError(
                f"the tokenizer {self.path or ''} does not fit the model: "
                f"it has {self.vocab_size} pieces, the model's vocabulary has {vocab_size}"
            )

    def surface(self, token_id: int) -> str | bytes:
        """What an id stands for inside a text: its text, or one byte for a byte piece.

        Raises ArgumentError for an id that the vocabulary does not have.
        """
        token_id = self._checked(token_id)
        piece = self.id_to_piece(token_id)
        surface: str | bytes
        if self._processor.is_byte(token_id):
            surface = bytes([int(piece[3:5], 16)])  # <0xXX>
        elif self._processor.is_control(token_id):
            surface = ""
        elif self._processor.is_unknown(token_id):
            surface = self._processor.decode([token_id])
        else:
            surface = piece.replace(_SPACE, " ")
        self.surfaces[token_id] = surface
        return surface

    def first_surface(self, token_id: int, surface: str) -> tuple[str, bool]:
        """The surface of an id before which there is no text, and whether that is so behind it too.

        SentencePiece puts a space before every text when it encodes and takes it away here; a
        model that squeezes whitespace goes on taking spaces until there is text.
        """
        piece = self.id_to_piece(token_id)
        if self._processor.is_unknown(token_id) or not piece.startswith(_SPACE):
            return surface, not surface
        return surface[1:], surface == " " and self._squeezes_spaces

    def _checked(self, token_id: int) -> int:
        try:
            index = operator.index(token_id)
        except TypeError:
            raise ArgumentError(f"token id is {shown(token_id)}, expected an int") from None
        if not 0 <= index < self.vocab_size:
            raise ArgumentError(
                f"token id is {shown(index)}, expected 0 to {self.vocab_size - 1} (the vocabulary)"
            )
        return index
