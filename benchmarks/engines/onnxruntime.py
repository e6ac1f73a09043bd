"""onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from engines.base import Engine, Setup, Source, run_python

PRECISIONS = {"float32": "fp32", "int8": "int8", "int4": "int4"}

MAX_BATCH = 32
"""More sequences it refuses."""


class OnnxRuntime(Engine):
    """`Generator`, one batch of prompts of equal length."""

    widths = ("float32", "int8", "int4")

    @staticmethod
    def version() -> str:
        """Of onnxruntime-genai."""
        from importlib.metadata import version

        return version("onnxruntime-genai")

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Run its model builder; activations in int8 (accuracy level 4) for int8 and int4."""
        path = source.hf.with_name(f"{source.hf.name}-onnx-{PRECISIONS[width]}")
        if not (path / "genai_config.json").exists():
            extra = ["prune_lm_head=true"]
            if width != "float32":
                extra += ["accuracy_level=4", "block_size=32"]
            arguments = ["-i", source.hf, "-o", path, "-c", f"{path}.tmp", "-e", "cpu"]
            arguments += ["-p", PRECISIONS[width], "--extra_options", *extra]
            run_python("-m", "onnxruntime_genai.models.builder", *arguments)
        return path

    def __init__(self, path: Path, setup: Setup) -> None:
        """Load the model."""
        import onnxruntime_genai as genai

        self._genai = genai
        config = genai.Config(str(path))
        threads = {"session_options": {"intra_op_num_threads": setup.threads}}
        config.overlay(json.dumps({"model": {"decoder": threads}}))
        self._model = genai.Model(config)
        self.setting = "" if setup.width == "float32" else "blocks of 32, accuracy level 4"

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Append the prompts, then one token of all at a time; in several batches if need be."""
        if len(prompts) > MAX_BATCH:
            rest = self.generate(prompts[MAX_BATCH:], new_tokens)
            return self.generate(prompts[:MAX_BATCH], new_tokens) + rest
        total = len(prompts[0]) + new_tokens
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=len(prompts), min_length=total, max_length=total, do_sample=False
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        n = len(prompts[0])
        return [list(map(int, generator.get_sequence(i)[n:])) for i in range(len(prompts))]
