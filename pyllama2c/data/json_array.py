"""The elements of a JSON array, one at a time, however long the array is."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from pyllama2c.errors import DataError

CHUNK_BYTES = 1 << 18
MAX_ELEMENT_CHARS = 1 << 25
# A parse error this near to the end of what has been read may only mean that more is to come
# (half an escape, half of "false"). Further away the text is wrong.
_TAIL = 16


def iter_json_array(stream: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """Yield ``(line, element)`` for each element of the JSON array in ``stream`` (UTF-8).

    Memory is bounded by the longest element, not by the array: the text is read in chunks and
    forgotten as it is parsed.

    Args:
        stream: a binary stream at the beginning of the array; needs ``read`` only.
        name: what to call the stream in errors.

    Raises:
        DataError: the text is no JSON array, or ends in the middle; names the line.
    """
    return _ArrayReader(stream, name).elements()


class _ArrayReader:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream = stream
        self.name = name
        self.text = ""  # what has been read and not yet forgotten
        self.position = 0  # in self.text
        self.line = 1  # of self.text[0]
        self.ended = False
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder()

    def elements(self) -> Iterator[tuple[int, Any]]:
        if self.next_char() != "[":
            raise self.error("expected a JSON array, which begins with '['")
        self.position += 1
        if self.next_char() == "]":
            self.position += 1
        else:
            while True:
                self.next_char()
                element = self.element()
                yield element
                after = self.next_char()
                if not after:
                    raise self.error("the file ends in the middle of the array")
                if after not in ",]":
                    raise self.error("expected ',' or ']' after an element of the array")
                self.position += 1
                if after == "]":
                    break
        if self.next_char():
            raise self.error("text after the end of the array")

    def element(self) -> tuple[int, Any]:
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self.text) - _TAIL
                )
                if self.ended and unfinished:
                    raise self.error("the file ends in the middle of the array") from None
                if not unfinished:
                    self.position = error.pos
                    raise self.error(error.msg) from None
                if len(self.text) - self.position > MAX_ELEMENT_CHARS:
                    raise self.error(
                        f"an element longer than {MAX_ELEMENT_CHARS} characters; "
                        "a quotation mark may be missing"
                    ) from None
                self.read_more()
                continue
            except (ValueError, RecursionError) as error:  # a number or a nesting out of bounds
                raise self.error(str(error)) from None
            # What has been read of a number may itself be one: 1 of 12, 1.5 of 1.5e+3.
            if not self.ended and end >= len(self.text) - 2:
                self.read_more()
                continue
            line = self.current_line()
            self.position = end
            return line, value

    def next_char(self) -> str:
        """Skip white space; the next character, or "" at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in " \t\r\n":
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                return ""
            self.read_more()

    def read_more(self) -> None:
        # Reading at least as much as is pending keeps the re-parsing of a long element linear.
        pending = len(self.text) - self.position
        data = self.stream.read(max(CHUNK_BYTES, pending))
        self.line = self.current_line()
        try:
            fresh = self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})") from None
        self.text = self.text[self.position :] + fresh
        self.position = 0
        self.ended = not data

    def current_line(self) -> int:
        return self.line + self.text.count("\n", 0, self.position)

    def error(self, message: str) -> DataError:
        return DataError(f"{self.name}:{self.current_line()}: {message}")
