"""Saved sessions: a small binary format, and a reader that trusts nobody.

A file is ``PL2S``, a version byte, the body, and a checksum of all of it. In the body a number is
a varint (seven bits a byte, the lowest first), a text or a list begins with its length.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pyllama2c.errors import ArgumentError, RestoreError
from pyllama2c.sampling import SamplingParams
from pyllama2c.session_state import Draft, SessionState

_MAGIC = b"PL2S"
_VERSION = 1
_CHECKSUM_BYTES = 8
_OVERFLOWS = ("stop", "slide")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session can go on with: anything else would tell another story."""

    weights: int
    """64-bit fingerprint of the weights, their dtype and the model's config."""
    tokenizer: int
    """64-bit fingerprint of the tokenizer; 0 without one."""
    kv_dtype: str
    max_length: int
    """Tokens that the context holds."""


def save(state: SessionState, origin: Origin) -> bytes:
    """The bytes of a session."""
    out = _Writer()
    out.fixed("<QQ", origin.weights, origin.tokenizer)
    out.text(origin.kv_dtype)
    out.number(origin.max_length)
    out.text(state.name)
    out.number(_OVERFLOWS.index(state.overflow))
    out.fixed("<Q", state.rng_state)
    out.params(state.params)
    out.numbers(state.ids)
    out.number(state.n_prefix)
    out.number(len(state.turns))
    for said, answered in state.turns:
        out.number(said)
        out.number(answered)
    out.number(state.draft is not None)
    if state.draft is not None:
        out.params(state.draft.params)
        out.number(state.draft.n_said)
        out.numbers(state.draft.written)
    data = _MAGIC + bytes([_VERSION]) + bytes(out.data)
    return data + _checksum(data)


def load(data: bytes, origin: Origin, vocab_size: int) -> SessionState:
    """The session that `save` made these bytes of. Raises RestoreError if it cannot go on here."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        _refuse(f"are {type(data).__name__}, expected bytes")
    data = bytes(data)
    if data[: len(_MAGIC)] != _MAGIC:
        _refuse("are no saved session")
    if len(data) < len(_MAGIC) + 1 + _CHECKSUM_BYTES:
        _refuse("are truncated")
    if data[len(_MAGIC)] != _VERSION:
        _refuse(f"have format version {data[len(_MAGIC)]}, this package reads version {_VERSION}")
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        _refuse("are damaged: their checksum is wrong")
    source = _Reader(content, len(_MAGIC) + 1)
    try:
        _check_origin(source, origin)
        state = _read_state(source)
    except (ArgumentError, UnicodeDecodeError) as error:
        _refuse(f"hold impossible values: {error}")
    if source.n_left:
        _refuse(f"have {source.n_left} bytes too many")
    _check_state(state, origin, vocab_size)
    return state


def _check_origin(source: _Reader, origin: Origin) -> None:
    weights, tokenizer = source.fixed("<QQ")
    kv_dtype, max_length = source.text(), source.number()
    if weights != origin.weights:
        _refuse("are of another model, or of the same one with another dtype")
    if tokenizer != origin.tokenizer:
        _refuse("are of a model with another tokenizer")
    if kv_dtype != origin.kv_dtype:
        _refuse(f"are of an engine with kv_dtype {kv_dtype!r}, this one has {origin.kv_dtype!r}")
    if max_length != origin.max_length:
        _refuse(
            f"are of an engine whose texts hold {max_length} tokens, here they hold "
            f"{origin.max_length}; give it more or less kv_memory"
        )


def _read_state(source: _Reader) -> SessionState:
    name = source.text()
    overflow = source.number()
    if overflow >= len(_OVERFLOWS):
        _refuse(f"hold impossible values: overflow {overflow}")
    (rng_state,) = source.fixed("<Q")
    params = source.params()
    ids = source.numbers()
    n_prefix = source.number()
    turns = [(source.number(), source.number()) for _ in range(source.length())]
    draft = None
    if source.number():
        draft = Draft(source.params(), source.number(), source.numbers())
    return SessionState(
        name, params, "slide" if overflow else "stop", rng_state, ids, n_prefix, turns, draft
    )


def _check_state(state: SessionState, origin: Origin, vocab_size: int) -> None:
    draft = state.draft
    written = draft.written if draft else []
    largest = max([*state.ids, *written, 0])
    if largest >= vocab_size:
        _refuse(f"hold impossible values: token {largest} of {vocab_size}")
    in_turns = sum(said + answered for said, answered in state.turns)
    if state.n_prefix + in_turns + (draft.n_said if draft else 0) != len(state.ids):
        _refuse("hold impossible values: the turns do not add up to the text")
    if draft and draft.params.seed is None:
        _refuse("hold impossible values: a text without a seed")
    if state.n_prefix + 2 > origin.max_length:
        _refuse("hold impossible values: a prefix longer than the context")
    most = origin.max_length
    if draft and (
        len(state.ids) > most or (state.overflow == "stop" and len(state.ids + written) > most)
    ):
        _refuse("hold impossible values: a text longer than the context")


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def fixed(self, layout: str, *values: float) -> None:
        self.data += struct.pack(layout, *values)

    def number(self, value: int) -> None:
        while value > 0x7F:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def numbers(self, values: Sequence[int]) -> None:
        self.number(len(values))
        for value in values:
            self.number(value)

    def text(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self.number(len(encoded))
        self.data += encoded

    def params(self, params: SamplingParams) -> None:
        self.fixed(
            "<6d",
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        self.number(params.top_k)
        self.number(0 if params.max_tokens is None else params.max_tokens + 1)
        self.number(0 if params.seed is None else params.seed + 1)
        self.number(params.ignore_eos)
        self.numbers(params.stop_token_ids)
        self.number(len(params.stop))
        for stop in params.stop:
            self.text(stop)
        bias = params.logit_bias or {}
        self.number(len(bias))
        for token, value in bias.items():
            self.number(token)
            self.fixed("<d", value)


class _Reader:
    """Refuses to read past the end, and to make lists longer than what could fill them."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    @property
    def n_left(self) -> int:
        return len(self._data) - self._position

    def take(self, n: int) -> bytes:
        if n > self.n_left:
            _refuse("are truncated")
        start, self._position = self._position, self._position + n
        return self._data[start : self._position]

    def fixed(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def number(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        return _refuse("hold impossible values: a number of more than 70 bits")

    def length(self) -> int:
        n = self.number()
        if n > self.n_left:  # everything takes a byte or more
            _refuse("are truncated")
        return n

    def numbers(self) -> list[int]:
        return [self.number() for _ in range(self.length())]

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "surrogatepass")

    def params(self) -> SamplingParams:
        temperature, top_p, min_p, repetition, presence, frequency = self.fixed("<6d")
        top_k, max_tokens, seed = self.number(), self.number(), self.number()
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            top_k=top_k,
            max_tokens=max_tokens - 1 if max_tokens else None,
            seed=seed - 1 if seed else None,
            ignore_eos=bool(self.number()),
            stop_token_ids=self.numbers(),
            stop=[self.text() for _ in range(self.length())],
            logit_bias={self.number(): self.fixed("<d")[0] for _ in range(self.length())} or None,
        )


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


def _refuse(why: str) -> NoReturn:
    raise RestoreError(f"the bytes {why}")
