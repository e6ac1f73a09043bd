"""Run tiny llama2.c-style Llama models inside your own Python process."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("pyllama2c._core") is None:
    # Started in the source folder, Python finds this before what `pip install .` has installed.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)
    if find_spec("pyllama2c._core") is None:
        raise ImportError("pyllama2c is not installed: this is its source; run `pip install .`")

from pyllama2c.config import ModelConfig
from pyllama2c.errors import (
    ArgumentError,
    BusyError,
    CapacityError,
    CheckpointError,
    ClosedError,
    MissingExtraError,
    Overloaded,
    Pyllama2cError,
    RestoreError,
    TokenizerError,
)
from pyllama2c.model import Model
from pyllama2c.outputs import Chunk, Completion, Timings, Usage
from pyllama2c.sampling import SamplingParams

if TYPE_CHECKING:
    from pyllama2c.async_engine import AsyncEngine, AsyncSession, Stream
    from pyllama2c.engine import Engine
    from pyllama2c.requests import Event, Request
    from pyllama2c.session import Prefix, Session, Turn
    from pyllama2c.stats import EngineStats, Histogram
    from pyllama2c.tokenizer import Detokenizer, Tokenizer

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncEngine",
    "AsyncSession",
    "BusyError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "Detokenizer",
    "Engine",
    "EngineStats",
    "Event",
    "Histogram",
    "MissingExtraError",
    "Model",
    "ModelConfig",
    "Overloaded",
    "Prefix",
    "Pyllama2cError",
    "Request",
    "RestoreError",
    "SamplingParams",
    "Session",
    "Stream",
    "Timings",
    "Tokenizer",
    "TokenizerError",
    "Turn",
    "Usage",
    "__version__",
]

# Imported when they are first used, so that an import takes little time.
_LAZY = {
    "AsyncEngine": "async_engine",
    "AsyncSession": "async_engine",
    "Detokenizer": "tokenizer",
    "Engine": "engine",
    "EngineStats": "stats",
    "Event": "requests",
    "Histogram": "stats",
    "Prefix": "session",
    "Request": "requests",
    "Session": "session",
    "Stream": "async_engine",
    "Tokenizer": "tokenizer",
    "Turn": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
