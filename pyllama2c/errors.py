"""Every error this package raises on purpose derives from `Pyllama2cError`.

Each also derives from the nearest built-in exception, so that code which knows nothing of this
package (``except ValueError``) still does the right thing. The C++ engine throws the same few
errors; they are mapped to these classes in one place (``csrc/bindings/errors.cpp``).
"""


class Pyllama2cError(Exception):
    """Base class of all errors of this package."""


class CheckpointError(Pyllama2cError, ValueError):
    """A model file is truncated, foreign or inconsistent; the message names the field."""


class TokenizerError(Pyllama2cError, ValueError):
    """A tokenizer file is unreadable, or does not fit the model."""


class DataError(Pyllama2cError, ValueError):
    """A corpus or token file is unreadable or inconsistent; the message names the file and line."""


class ArgumentError(Pyllama2cError, ValueError):
    """An argument is out of range; the message names it, its value and what would work."""


class CapacityError(Pyllama2cError, MemoryError):
    """A request can never fit into the memory or the context it was given."""


class Overloaded(Pyllama2cError, RuntimeError):
    """The engine has as many requests waiting as it may have; try again later, or elsewhere."""


class BusyError(Pyllama2cError, RuntimeError):
    """One at a time: a session still talks, a stream has a reader, or `step` called itself."""


class RestoreError(Pyllama2cError, ValueError):
    """A saved session is corrupted, foreign, or of another model; the message says which."""


class ClosedError(Pyllama2cError, RuntimeError):
    """The model or engine was used after it had been closed."""


class MissingExtraError(Pyllama2cError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


def shown(value: object, most: int = 80) -> str:
    """A value as an error's message shows it: its repr, not without end, or its type alone."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or the caller's own
        return f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."
