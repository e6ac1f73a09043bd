"""Checking and unifying what the caller passes."""

from __future__ import annotations

import errno
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from pyllama2c import _core
from pyllama2c.errors import ArgumentError, Pyllama2cError, shown
from pyllama2c.sampling import SamplingOptions, SamplingParams

Prompt = str | Sequence[int]

# They hold integers, but nobody means token ids by them, or they have no order.
_NO_IDS = (bytes, bytearray, memoryview, dict, set, frozenset)


def parse_bytes(name: str, value: int | str) -> int:
    """``"1GiB"``, ``"512 MiB"``, ``"64KB"`` or a plain number, as bytes.

    Raises ArgumentError naming the argument ``name``.
    """
    units = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    units |= {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].upper() in units:
            n_bytes = float(match[1]) * units[match[2].upper()]
            if n_bytes < 2**63:
                return int(n_bytes)
    elif not isinstance(value, bool) and isinstance(value, Integral) and 0 < value < 2**63:
        return int(value)
    raise ArgumentError(
        f'{name} is {shown(value)}, expected bytes, or text such as "512MiB" or "1GiB"'
    )


def milliseconds(name: str, value: float) -> float:
    """A number from 0, of any type. Raises ArgumentError naming the argument ``name``."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not 0 <= number < math.inf:
        raise ArgumentError(f"{name} is {shown(value)}, expected milliseconds, or None")
    return number


def parse_kv_type(name: str) -> _core.KvType:
    types = _core.KvType.__members__
    if not isinstance(name, str) or name not in types:
        raise ArgumentError(f"kv_dtype is {shown(name)}, expected one of {', '.join(types)}")
    return types[name]


def positive(name: str, value: int, most: int, *, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise ArgumentError(
            f"{name} is {shown(value)}, expected a whole number from {least} to {most}"
        )
    return number


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def as_utf8(name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise ArgumentError(f"{name} is {shown(text)}, expected a str")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{name} has a lone surrogate ({text[error.start]!r}) at position {error.start}, "
            "expected valid Unicode"
        ) from None


def _whole_numbers(ids: Iterable[int]) -> list[int] | None:
    if isinstance(ids, _NO_IDS):
        return None
    try:
        items = list(ids)
        # True and False are numbers, but nobody means token ids by them.
        if any(isinstance(item, bool) for item in items):
            return None
        return [operator.index(item) for item in items]
    except TypeError:
        return None


def as_ids(ids: Sequence[int], vocab_size: int, name: str = "ids") -> list[int]:
    """Token ids of the vocabulary. Raises ArgumentError naming the argument ``name``."""
    result = _whole_numbers(ids)
    if result is None:
        raise ArgumentError(f"{name} is {shown(ids)}, expected a sequence of whole numbers")
    for i in result:
        if not 0 <= i < vocab_size:
            raise ArgumentError(f"{name} holds token {shown(i)}, expected 0 to {vocab_size - 1}")
    return result


def as_path(name: str, value: object, error: type[Pyllama2cError] = ArgumentError) -> Path:
    """A path that a file can have; whether there is one, who opens it will tell."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ArgumentError(f"{name} is {shown(value)}, expected a path")
    if not os.fspath(value):
        raise error(f"{name} is empty, expected the name of a file or directory")
    try:
        os.lstat(value)
    except ValueError as problem:  # a NUL character, half of a surrogate pair
        raise error(f"{name} is {shown(os.fspath(value), 200)}: {problem}") from None
    except OSError as problem:
        if problem.errno == errno.ENAMETOOLONG:
            raise error(f"{name} is {shown(os.fspath(value), 200)}: {problem.strerror}") from None
    return Path(value)


def _iterates(prompt: object) -> bool:
    try:
        iter(prompt)  # type: ignore[call-overload]
    except TypeError:  # as of numpy's arrays without a dimension
        return False
    return True


def _is_id(item: object) -> bool:
    # A bool has an __index__ too, and so have numpy's arrays of one element.
    return (
        hasattr(item, "__index__") and not isinstance(item, bool) and not hasattr(item, "__len__")
    )


def as_prompts(name: str, prompt: object) -> tuple[list[Prompt], bool]:
    """The prompts in a list, and whether there may be several."""
    if isinstance(prompt, str):
        as_utf8(name, prompt)
        return [prompt], False
    if isinstance(prompt, _NO_IDS) or not _iterates(prompt):
        raise ArgumentError(
            f"{name} is {shown(prompt)}, expected text, token ids, or a list of those"
        )
    items = list(prompt)  # type: ignore[call-overload]
    strangers = [i for i in items if not _is_id(i)]
    if items and not strangers:
        return [items], False
    for item in strangers:
        if not _iterates(item):
            raise ArgumentError(f"{name} holds {shown(item)}, expected text or token ids")
        if isinstance(item, str):
            as_utf8(name, item)
    if len(strangers) < len(items):
        raise ArgumentError(f"{name} is {shown(prompt)}, expected either token ids or a list")
    return items, True


def as_params(
    params: SamplingParams | Sequence[SamplingParams] | None,
    options: Mapping[str, object],
    n_prompts: int,
    is_batch: bool,
    others: Sequence[str] = (),
) -> list[SamplingParams]:
    """The parameters of each prompt; ``others`` is what the call takes beside `SamplingOptions`."""
    if params is None:
        many = [SamplingParams()] * n_prompts
    elif isinstance(params, SamplingParams):
        many = [params] * n_prompts
    elif not is_batch or not isinstance(params, Sequence):
        raise ArgumentError(f"params is {shown(params)}, expected a SamplingParams")
    else:
        many = list(params)
    if len(many) != n_prompts:
        raise ArgumentError(
            f"params has {len(many)} entries, expected one for each of {n_prompts} prompts"
        )
    for one in many:
        if not isinstance(one, SamplingParams):
            raise ArgumentError(f"params holds {shown(one)}, expected a SamplingParams")
    if not options:
        return many
    known = (*others, *SamplingOptions.__annotations__)
    for name in options:
        if name not in known:
            from difflib import get_close_matches

            begun = [one for one in known if one.startswith(name)]
            near = begun or get_close_matches(name, known, 1)
            advice = f": did you mean {near[0]}?" if near else f", expected {', '.join(known)}"
            raise ArgumentError(f"unknown option {name!r}{advice}")
    return [one.replace(**options) for one in many]


def merged_params(
    params: SamplingParams | None, options: Mapping[str, object], others: Sequence[str] = ()
) -> SamplingParams:
    """One set of parameters, the options on top."""
    return as_params(params, options, 1, False, others)[0]


def as_one(name: str, prompt: object) -> Prompt:
    """A prompt that is no list of prompts."""
    if isinstance(prompt, _NO_IDS) or not _iterates(prompt):
        raise ArgumentError(f"{name} is {shown(prompt)}, expected text or token ids")
    prompts, is_batch = as_prompts(name, prompt)
    if is_batch and prompts:
        raise ArgumentError(f"{name} is a list of prompts, expected one text or list of ids")
    return [] if is_batch else prompts[0]
