"""OpenVINO GenAI: its continuous batching pipeline."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import Request, Server, Setup, Source, run_python

WEIGHTS = {
    "float32": ["fp32"],
    "bfloat16": ["fp32"],
    "int8": ["int8"],
    "int4": ["int4", "--sym", "--group-size", "128", "--group-size-fallback", "adjust"],
}
"""What optimum's exporter is told. 16-bit weights are made by the plugin on loading."""
PROPERTIES: dict[str, dict[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
    "int8": {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128},
    "int4": {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128},
}


class OpenVino(Server):
    """`ContinuousBatchingPipeline`, stepped until every request is complete."""

    @staticmethod
    def version() -> str:
        """Of openvino-genai."""
        from importlib.metadata import version

        return version("openvino-genai")

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Export with optimum-intel, weights compressed by nncf."""
        weights = WEIGHTS[width]
        path = source.hf.with_name(f"{source.hf.name}-openvino-{weights[0]}")
        if not (path / "openvino_detokenizer.xml").exists():
            exporter = "from optimum.commands.optimum_cli import main; main()"
            arguments = ["--task", "text-generation-with-past", "--model", source.hf]
            arguments += ["--weight-format", *weights, path]
            run_python("-c", exporter, "export", "openvino", *arguments)
        return path

    def __init__(self, path: Path, setup: Setup) -> None:
        """Compile the model; the cache holds all sequences in full."""
        import openvino as ov
        import openvino_genai as genai

        self._tensor = ov.Tensor
        self._running = genai.GenerationStatus.RUNNING
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = setup.n_sequences
        scheduler.max_num_batched_tokens = 512
        scheduler.cache_size = 1  # GiB
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = bool(setup.shared)
        properties = {
            **PROPERTIES[setup.width],
            "INFERENCE_NUM_THREADS": setup.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        chosen = PROPERTIES[setup.width].items()
        self.setting = ", ".join(f"{name}={value}" for name, value in chosen)
        self._pipeline = genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)
        self._config = genai.GenerationConfig()
        self._config.do_sample = False
        self._config.ignore_eos = True
        self._n_sequences = setup.n_sequences
        self._waiting: deque[tuple[int, Request]] = deque()
        self._handles: dict[int, Any] = {}

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Add all requests, then step."""
        self._config.max_new_tokens = new_tokens
        handles = [
            self._pipeline.add_request(i, self._tensor(np.array([prompt], np.int64)), self._config)
            for i, prompt in enumerate(prompts)
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    def submit(self, index: int, request: Request) -> None:
        """Queue it until there is room: the pipeline itself runs any number at once."""
        self._waiting.append((index, request))

    def step(self) -> list[tuple[int, int]]:
        """One step, then a look at every handle; shared beginnings it finds by itself."""
        while self._waiting and len(self._handles) < self._n_sequences:
            self._add(*self._waiting.popleft())
        self._pipeline.step()
        news = []
        for index, handle in list(self._handles.items()):
            while handle.can_read():
                (output,) = handle.read().values()
                news.append((index, len(output.generated_ids)))
            if handle.get_status() != self._running:
                del self._handles[index]
        return news

    def _add(self, index: int, request: Request) -> None:
        self._config.max_new_tokens = request.new_tokens
        prompt = self._tensor(np.array([request.prompt], np.int64))
        self._handles[index] = self._pipeline.add_request(index, prompt, self._config)
