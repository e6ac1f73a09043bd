"""Number formats of stored weights: float32, float16 and bfloat16.

NumPy has no bfloat16, so an array of ``uint16`` stands for bfloat16 everywhere in this package: its
elements are the upper halves of float32 numbers. No Llama tensor is ``uint16`` for another reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c.errors import ArgumentError

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


def dtype_name(array: Array) -> str:
    """``float32``, ``float16`` or ``bfloat16``: how the array's elements are to be read."""
    for name, dtype in DTYPES.items():
        if array.dtype == dtype:
            return name
    raise ArgumentError(f"dtype is {array.dtype}, expected one of {', '.join(DTYPES)}")


def to_float32(array: Array) -> NDArray[np.float32]:
    """The same numbers in float32; exact for every stored format, and no copy of float32."""
    if dtype_name(array) == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def cast(array: Array, dtype: str) -> Array:
    """The array in another number format, rounded to nearest, ties to even.

    Raises:
        ArgumentError: ``dtype`` is unknown, or too narrow for a number that is in the array
            (float16 ends at 65504).
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype_name(array) == dtype:
        return array
    wide = to_float32(array)
    if dtype == "float32":
        return wide
    with np.errstate(over="ignore"):
        narrow = _round_to_bfloat16(wide) if dtype == "bfloat16" else wide.astype(np.float16)
    if not np.array_equal(np.isinf(wide), np.isinf(to_float32(narrow))):
        largest = np.abs(wide[np.isfinite(wide)]).max()
        raise ArgumentError(f"dtype {dtype} cannot hold {largest:g}; use float32")
    return narrow


def _round_to_bfloat16(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(wide).view(np.uint32)
    # Adding 0x7fff rounds up anything above the middle; the lowest kept bit decides a tie.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # A NaN must stay one: its payload could be rounded away, so set the quiet bit instead.
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(wide), quiet, rounded)
