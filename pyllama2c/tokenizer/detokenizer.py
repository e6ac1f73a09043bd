"""Text from token ids as they come, one at a time, never half a character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyllama2c.errors import ArgumentError

if TYPE_CHECKING:
    from pyllama2c.tokenizer.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns ids into text incrementally, with the result of SentencePiece's decoding of the whole.

    >>> text = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()

    equals ``tokenizer.decode(ids)``. A character spelled in byte pieces comes out with its last
    byte; bytes that are not UTF-8 come out as one U+FFFD each as soon as that is certain.

    `prompt_ids` are ids that were shown already: what comes out then continues their text. Where
    they end in the middle of a character, the first text is that character.
    """

    __slots__ = ("_at_start", "_pending", "_surfaces", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._surfaces = tokenizer.surfaces
        self._pending = b""  # up to three bytes, the beginning of a character
        self._at_start = tokenizer.strips_leading_space  # no text yet: the next space is dropped
        for token_id in prompt_ids:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that this id completes, perhaps empty. Raises ArgumentError for a foreign id."""
        surface = self._surfaces.get(token_id)
        if surface is None:
            surface = self._tokenizer.surface(token_id)
        if isinstance(surface, bytes):
            return self._push_byte(surface)
        if self._pending:
            return self.flush() + surface
        if self._at_start:
            surface, self._at_start = self._tokenizer.first_surface(token_id, surface)
        return surface

    def flush(self) -> str:
        """The end of the text: what is left of an unfinished character, as U+FFFD for each byte."""
        text = _REPLACEMENT * len(self._pending)
        self._pending = b""
        return text

    def _push_byte(self, byte: bytes) -> str:
        self._at_start = False
        data = self._pending + byte
        text = ""
        while data:
            size = _utf8_length(data)
            if size > len(data):  # a good beginning
                break
            text += data[:size].decode() if size else _REPLACEMENT
            data = data[max(size, 1) :]
        self._pending = data
        return text

    def state(self) -> bytes:
        """What is needed to go on later, in another process even: 1 to 4 bytes."""
        return bytes([self._at_start]) + self._pending

    @classmethod
    def from_state(cls, tokenizer: Tokenizer, state: bytes) -> Detokenizer:
        """A detokenizer that goes on where `state()` was called on another.

        Raises ArgumentError if `state` is nothing that `state()` returns.
        """
        pending = state[1:]
        whole = bool(pending) and _utf8_length(pending) <= len(pending)
        if state[:1] not in (b"\0", b"\1") or whole or (pending and state[0]):
            raise ArgumentError(f"state is {state!r}, expected what Detokenizer.state() returned")
        self = cls(tokenizer)
        self._at_start, self._pending = bool(state[0]), pending
        return self


def _utf8_length(data: bytes) -> int:
    """How many bytes the UTF-8 character takes that `data` begins with; 0 if it begins none.

    More than there are if `data` is a valid beginning. The ranges of the second byte are those
    of table 3-7 of the Unicode standard: no overlong forms, surrogates or values over U+10FFFF.
    """
    lead = data[0]
    if lead < 0x80:
        return 1
    if 0xC2 <= lead <= 0xDF:
        size = 2
    elif 0xE0 <= lead <= 0xEF:
        size = 3
    elif 0xF0 <= lead <= 0xF4:
        size = 4
    else:
        return 0
    if len(data) > 1:
        low = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
        high = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
        if not low <= data[1] <= high:
            return 0
        if not all(0x80 <= byte <= 0xBF for byte in data[2:size]):
            return 0
    return size
