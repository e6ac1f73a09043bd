"""What a generation gives back: a `Completion`, or a stream of `Chunk`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "deadline", "cancelled"]
"""Why a text ended: "stop" (an end token or a stop string came), "length" (`max_tokens` tokens
were generated, or the context is full), "deadline" (its time was over), "cancelled"."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens a request took."""

    prompt_tokens: int
    """Ids of the prompt, BOS included."""
    completion_tokens: int
    """Ids generated, the end token included."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds of wall clock; all 0.0 if the caller cancelled it."""

    prefill_seconds: float
    """From submitting to the first token: waiting in the queue and reading the prompt."""
    decode_seconds: float
    """From there to the last generated token."""
    tokens_per_second: float
    """Tokens after the first per second of decoding; 0.0 where there are none."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text. `str()` of it is the text; the prompt is not part of it."""

    text: str
    token_ids: tuple[int, ...]
    """The generated ids. An end token that ended the text is not among them, nor is what a
    deadline cut off."""
    finish_reason: FinishReason
    usage: Usage
    seed: int
    """The seed that was used: with it the same call gives the same text again."""
    timings: Timings

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a streamed text. `str()` of it is the new text, perhaps empty.

    The texts of all chunks joined are the text of the `Completion`, and so are the ids. Only
    a deadline makes them differ: it cuts or replaces what the chunks have told already.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """None until the last chunk."""
    completion: Completion | None = None
    """On the last chunk: the whole completion, with its usage, seed and timings."""

    def __str__(self) -> str:
        return self.text
