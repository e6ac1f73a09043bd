"""CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path

from engines.base import Engine, Setup, Source, run_python


class CTranslate2(Engine):
    """`Generator.generate_batch` without the prompt in its result."""

    widths = ("float32", "int8")

    @staticmethod
    def version() -> str:
        """Of ctranslate2."""
        from importlib.metadata import version

        return version("ctranslate2")

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Convert from transformers."""
        path = source.hf.with_name(f"{source.hf.name}-ctranslate2-{width}")
        if not (path / "model.bin").exists():
            converter = "from ctranslate2.converters.transformers import main; main()"
            arguments = ["--model", source.hf, "--output_dir", path, "--quantization", width]
            run_python("-c", converter, *arguments)
        return path

    def __init__(self, path: Path, setup: Setup) -> None:
        """Load the model."""
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(path),
            device="cpu",
            compute_type=setup.width,
            inter_threads=1,
            intra_threads=setup.threads,
        )
        self._n_sequences = setup.n_sequences
        self._vocabulary = json.loads((path / "vocabulary.json").read_text())
        self.setting = f"compute type {setup.width}"

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """It takes tokens as text and gives ids."""
        results = self._generator.generate_batch(
            [[self._vocabulary[token] for token in prompt] for prompt in prompts],
            max_length=new_tokens,
            min_length=new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=self._n_sequences,
        )
        return [list(result.sequences_ids[0]) for result in results]
