"""pyllama2c itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.base import Request, Server, Setup, Source

KV_DTYPES = {"float32": "float32", "bfloat16": "float16", "int8": "int8", "int4": "int8"}

KV_MEMORY = "1GiB"


class Pyllama2c(Server):
    """`Model.generate`; keys and values about as wide as the weights."""

    @staticmethod
    def version() -> str:
        """Of pyllama2c."""
        import pyllama2c

        return pyllama2c.__version__

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Store the packed weights, which are mapped in place."""
        path = source.checkpoint.with_suffix(f".{width}.safetensors")
        if not path.exists():
            from pyllama2c.convert import convert

            convert(source.checkpoint, path, dtype=width)
        return path

    def __init__(self, path: Path, setup: Setup) -> None:
        """Map the weights."""
        from pyllama2c import Engine, Model

        kv_dtype = KV_DTYPES[setup.width]
        self._model = Model(
            path,
            kv_dtype=kv_dtype,
            n_threads=setup.threads,
            max_sequences=setup.n_sequences,
        )
        self.setting = f"kv {kv_dtype}, {self._model.info()['isa']}"
        self._engine: Any = None
        if setup.shared:  # it is to serve
            self._engine = Engine(
                self._model,
                max_sequences=setup.n_sequences,
                kv_memory=KV_MEMORY,
                preallocate=True,  # as OpenVINO's cache is
            )
        self._numbers: dict[Any, int] = {}

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """`Model.generate` with a list."""
        completions = self._model.generate(
            prompts, max_tokens=new_tokens, temperature=0, ignore_eos=True
        )
        return [list(completion.token_ids) for completion in completions]

    def submit(self, index: int, request: Request) -> None:
        """`Engine.submit`; the engine finds shared beginnings by itself."""
        ours = self._engine.submit(
            request.prompt, max_tokens=request.new_tokens, temperature=0, ignore_eos=True
        )
        self._numbers[ours] = index

    def step(self) -> list[tuple[int, int]]:
        """`Engine.step`."""
        return [
            (self._numbers[event.request], len(event.chunk.token_ids))
            for event in self._engine.step()
        ]
