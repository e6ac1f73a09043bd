"""transformers on PyTorch."""

from __future__ import annotations

from pathlib import Path

from engines.base import Engine, Setup, Source


class Transformers(Engine):
    """`generate` of LlamaForCausalLM."""

    widths = ("float32", "bfloat16")

    @staticmethod
    def version() -> str:
        """Of both packages."""
        from importlib.metadata import version

        return f"{version('transformers')} on torch {version('torch')}"

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Nothing to do."""
        return source.hf

    def __init__(self, path: Path, setup: Setup) -> None:
        """Load the model."""
        import torch
        import transformers

        self._torch = torch
        torch.set_num_threads(setup.threads)
        self._model = transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=getattr(torch, setup.width), attn_implementation="sdpa"
        ).eval()
        self.setting = "sdpa attention"

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy, end tokens held back."""
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            outputs = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return outputs[:, len(prompts[0]) :].tolist()
