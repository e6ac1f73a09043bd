"""The engines by the names that the command line takes."""

from __future__ import annotations

from importlib import import_module

from engines.base import Engine

OURS = "pyllama2c"
CLASSES = {
    OURS: ("engines.ours", "Pyllama2c"),
    "llama_cpp": ("engines.llama_cpp", "LlamaCpp"),
    "openvino": ("engines.openvino", "OpenVino"),
    "onnxruntime": ("engines.onnxruntime", "OnnxRuntime"),
    "ctranslate2": ("engines.ctranslate2", "CTranslate2"),
    "transformers": ("engines.transformers", "Transformers"),
}
SERVERS = (OURS, "llama_cpp", "openvino")
"""Those that are a `Server`."""


def engine_class(name: str) -> type[Engine]:
    """The class of an engine; importing it needs none of the engine's packages."""
    module, attribute = CLASSES[name]
    found: type[Engine] = getattr(import_module(module), attribute)
    return found
