"""Run tiny llama2.c-style Llama models inside your own Python process."""

from pyllama2c.config import ModelConfig
from pyllama2c.errors import (
    ArgumentError,
    CapacityError,
    CheckpointError,
    ClosedError,
    MissingExtraError,
    Pyllama2cError,
    TokenizerError,
)
from pyllama2c.model import Model
from pyllama2c.outputs import Chunk, Completion, Timings, Usage
from pyllama2c.sampling import SamplingParams
from pyllama2c.tokenizer import Detokenizer, Tokenizer

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "Detokenizer",
    "MissingExtraError",
    "Model",
    "ModelConfig",
    "Pyllama2cError",
    "SamplingParams",
    "Timings",
    "Tokenizer",
    "TokenizerError",
    "Usage",
    "__version__",
]
