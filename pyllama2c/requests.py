"""What an engine is asked for: `Request`, its `Event`s, and what becomes of it at its deadline."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyllama2c.arguments import as_utf8, milliseconds
from pyllama2c.errors import ArgumentError, shown
from pyllama2c.outputs import Chunk, Completion, FinishReason

if TYPE_CHECKING:
    from pyllama2c import _core
    from pyllama2c.engine import Engine
    from pyllama2c.generation import Generation
    from pyllama2c.session import SessionBase

Overflow = Literal["stop", "slide"]
OnDeadline = str | Callable[[str], str]

# Names of what `Engine.submit` takes beside `SamplingOptions`.
OF_REQUESTS = ("priority", "deadline_ms", "on_deadline", "overflow")

SENTENCE_ENDS = "。！？.!?"
_CLOSING = "”’」』》】）)\"'"  # belong to the sentence before


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is served. None of it changes which tokens are chosen, but for `overflow`."""

    priority: int = 0
    deadline_ms: float | None = None
    on_deadline: OnDeadline = "sentence"
    overflow: Overflow = "stop"

    def __post_init__(self) -> None:
        try:
            priority = operator.index(self.priority)
        except TypeError:
            priority = 2**31
        if isinstance(self.priority, bool) or not -(2**31) <= priority < 2**31:
            raise ArgumentError(
                f"priority is {shown(self.priority)}, expected a 32-bit whole number"
            )
        if self.deadline_ms is not None:
            milliseconds("deadline_ms", self.deadline_ms)
        if isinstance(self.on_deadline, str):
            as_utf8("on_deadline", self.on_deadline)
        elif not callable(self.on_deadline):
            raise ArgumentError(
                f'on_deadline is {shown(self.on_deadline)}, expected "sentence", a line to say '
                "instead, or a function from text to text"
            )
        if not isinstance(self.overflow, str) or self.overflow not in ("stop", "slide"):
            raise ArgumentError(f'overflow is {shown(self.overflow)}, expected "stop" or "slide"')

    @property
    def finisher(self) -> Callable[[str], str]:
        """What makes the final text of one that was not finished in time."""
        if not isinstance(self.on_deadline, str):
            return self.on_deadline
        fallback = "" if self.on_deadline == "sentence" else self.on_deadline
        return lambda text: whole_sentences(text) or fallback


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end (。！？.!?) and the quotes that close behind it."""
    end = max(text.rfind(mark) for mark in SENTENCE_ENDS) + 1
    while 0 < end < len(text) and text[end] in _CLOSING:
        if text[end] == '"' and text.count('"', 0, end) % 2 == 0:
            break  # it opens
        end += 1
    return text[:end]


class Request:
    """A text that an engine is writing. Made by `Engine.submit` and `Session.submit`."""

    __slots__ = ("__weakref__", "_engine", "_generation", "_id", "session")

    def __init__(
        self,
        engine: Engine,
        request_id: int,
        generation: Generation,
        session: SessionBase | None,
    ) -> None:
        self._engine = engine
        self._id = request_id
        self._generation = generation
        self.session = session
        """Whose answer it is; None if it was submitted to the engine itself."""

    @property
    def text(self) -> str:
        """What is written so far; in the end the completion's text."""
        completion = self._generation.completion
        return self._generation.text if completion is None else completion.text

    @property
    def completion(self) -> Completion | None:
        """The result; None while the text is being written."""
        return self._generation.completion

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None while it is being written."""
        completion = self._generation.completion
        return None if completion is None else completion.finish_reason

    @property
    def done(self) -> bool:
        """Whether the text has ended, in whichever way."""
        return self._generation.completion is not None

    @property
    def seed(self) -> int:
        """The seed that the text is drawn with."""
        return self._generation.seed

    def cancel(self) -> None:
        """End the text where it is and free what it holds; nothing happens if it has ended."""
        self._engine._cancel(self)

    def __repr__(self) -> str:
        return f"<Request {self._id}: {self.finish_reason or 'running'}, {self.text[:40]!r}>"

    def _push(self, progress: _core.Progress) -> Chunk | None:
        """Take the core's news; the caller holds the engine's lock. None: it has ended already."""
        generation = self._generation
        if generation.completion is not None:
            return None
        try:
            chunk = generation.push(progress)
        except BaseException:  # the caller's on_deadline failed
            self._cancel()
            raise
        if generation.completion is not None:
            self._end()
        return chunk

    def _cancel(self) -> None:
        """The same as `cancel`; the caller holds the engine's lock."""
        self._generation.cancel()
        self._end()

    def _end(self) -> None:
        # What a signal's handler that raises leaves undone here, cancelling and the session's next
        # text make good.
        self._engine._forget(self)
        if self.session is not None and self.session._request is self:
            self.session._end(self._generation)


@dataclass(slots=True)
class Event:
    """News of a request: the next piece of its text, and with the last one how it ended."""

    request: Request
    chunk: Chunk

    @property
    def text(self) -> str:
        """The new text, never half a character, perhaps empty."""
        return self.chunk.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the request's last event. (One that the caller cancels has none.)"""
        return self.chunk.finish_reason

    @property
    def completion(self) -> Completion | None:
        """On the request's last event: the whole completion."""
        return self.chunk.completion
