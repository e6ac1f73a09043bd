"""`SamplingParams`: everything that decides which token comes next and where a text ends."""

from __future__ import annotations

import dataclasses
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

from pyllama2c.errors import ArgumentError, shown

MAX_SEED = 2**64 - 1
_MAX_TOKEN_ID = _MAX_TOKENS = 2**31 - 1


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as the keyword arguments of a call, for type checkers."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop: immutable, and checked when it is made.

    The logits of a step are changed in this order: `logit_bias`, penalties, `temperature`; then
    `min_p`, `top_k` and `top_p` each remove candidates, and one random number chooses among those
    left. With the same `seed`, `temperature` and `top_p` and the rest left alone the choices are
    those of llama2.c.

    Any number type will do for a number (numpy's too), but a bool will not. Raises ArgumentError
    for a wrong type, NaN, an infinity, or a value out of range; the message names the argument.
    """

    temperature: float = 1.0
    """Above 1 wilder, below 1 tamer; 0 takes the likeliest token always. From 0 to 1e6."""
    top_k: int = 0
    """Choose among the k likeliest tokens only; 0 is off."""
    top_p: float = 0.9
    """Choose among the likeliest tokens that together exceed this probability; 0 and 1 are off."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest's probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or text (Keskar et
    al., CTRL, 2019); 1 is off. From 0.01 to 100."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token that the text has generated. From -100 to 100."""
    frequency_penalty: float = 0.0
    """Subtracted as many times as the text has generated the token. From -100 to 100."""
    logit_bias: Mapping[int, float] | None = None
    """token id -> what to add to its logit, from -1e6 to 1e6: never and always, at temperatures up
    to 1e4. A copy is kept."""
    seed: int | None = None
    """0 to 2**64 - 1, 0 is a seed like any other; None draws a fresh one, told in the result."""
    max_tokens: int | None = None
    """Generate at most this many tokens; None goes on until the context is full. 0 generates
    none: the prompt is only checked, the text is empty and its finish_reason "length"."""
    stop: str | Sequence[str] = ()
    """A string or strings that end the text where they appear; they are not part of it. Kept as
    a tuple."""
    stop_token_ids: Sequence[int] = ()
    """Ids that end the text as BOS and EOS do. Kept as a tuple."""
    ignore_eos: bool = False
    """Go on after BOS and EOS (not after `stop_token_ids`)."""

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one moment in which a frozen object may change
        put(self, "temperature", _float("temperature", self.temperature, 0.0, 1e6, "0 is greedy"))
        put(self, "top_k", _int("top_k", self.top_k, 0, _MAX_TOKEN_ID, "0 is off"))
        put(self, "top_p", _float("top_p", self.top_p, 0.0, 1.0, "0 and 1 are off"))
        put(self, "min_p", _float("min_p", self.min_p, 0.0, 1.0, "0 is off"))
        name = "repetition_penalty"
        put(self, name, _float(name, self.repetition_penalty, 0.01, 100.0, "1 is off"))
        for name in ("presence_penalty", "frequency_penalty"):
            put(self, name, _float(name, getattr(self, name), -100.0, 100.0, "0 is off"))
        put(self, "logit_bias", _logit_bias(self.logit_bias))
        if self.seed is not None:
            put(self, "seed", _int("seed", self.seed, 0, MAX_SEED, "or None"))
        if self.max_tokens is not None:
            put(self, "max_tokens", _int("max_tokens", self.max_tokens, 0, _MAX_TOKENS, "or None"))
        put(self, "stop", _stop(self.stop))
        put(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if not _is_bool(self.ignore_eos):
            _refuse("ignore_eos", self.ignore_eos, "True or False")
        put(self, "ignore_eos", bool(self.ignore_eos))

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)


class _FrozenDict(dict[int, float]):
    """A dict that stays as it is, so that parameters that hold one can be shared and hashed."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("logit_bias cannot be changed; use SamplingParams.replace(logit_bias=...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type, tuple[dict[int, float]]]:
        return _FrozenDict, (dict(self),)  # pickling item by item would need __setitem__


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise ArgumentError(f"{name} is {shown(value)}, expected {expected}")


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # NumPy's own may be called either


def _float(name: str, value: Any, low: float, high: float, hint: str = "") -> float:
    expected = f"a number from {low:g} to {high:g}" + (f" ({hint})" if hint else "")
    if _is_bool(value) or isinstance(value, (str, bytes)):
        _refuse(name, value, expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        _refuse(name, value, expected)
    if not low <= number <= high:  # NaN is neither
        _refuse(name, value, expected)
    return number


def _int(name: str, value: Any, low: int, high: int, hint: str = "") -> int:
    expected = f"an integer from {low} to {high}" + (f" ({hint})" if hint else "")
    if _is_bool(value):
        _refuse(name, value, expected)
    try:
        number = operator.index(value)
    except TypeError:
        _refuse(name, value, expected)
    if not low <= number <= high:
        _refuse(name, value, expected)
    return number


def _logit_bias(value: Any) -> _FrozenDict | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        _refuse("logit_bias", value, "a mapping of token id to number, or None")
    return _FrozenDict(
        {
            _int("logit_bias key", token_id, 0, _MAX_TOKEN_ID): _float(
                f"logit_bias[{shown(token_id)}]", bias, -1e6, 1e6
            )
            for token_id, bias in value.items()
        }
    )


def _stop(value: Any) -> tuple[str, ...]:
    expected = "a string that is not empty, or a sequence of such"
    if isinstance(value, str):
        value = (value,)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        _refuse("stop", value, expected)
    for string in value:
        if not isinstance(string, str) or not string:
            _refuse("stop", string, expected)
    return tuple(value)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, numbers.Number)):
        _refuse(name, value, "a sequence of token ids")
    try:
        items = list(value)
    except TypeError:
        _refuse(name, value, "a sequence of token ids")
    return tuple(_int(f"{name}[{i}]", item, 0, _MAX_TOKEN_ID) for i, item in enumerate(items))
