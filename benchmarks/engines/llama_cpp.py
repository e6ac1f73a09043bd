"""llama.cpp, through the C interface that llama-cpp-python exposes."""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import Request, Server, Setup, Source
from engines.gguf_file import BLOCK, write_gguf

FORMATS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}

Row = tuple[int, int, int, bool]
"""Token, position, sequence, whether to choose the next token."""


@dataclass
class Slot:
    """A sequence of the context, and the request that has it."""

    sequence: int
    index: int | None = None
    pending: list[int] = field(default_factory=list)
    """Tokens to compute: the rest of the prompt, or the last token chosen."""
    position: int = 0
    missing: int = 0
    """New tokens to come."""

    def take(self, most: int) -> list[Row]:
        """The next rows to compute, at most that many."""
        tokens, self.pending = self.pending[:most], self.pending[most:]
        start, self.position = self.position, self.position + len(tokens)
        return [
            (token, start + i, self.sequence, not self.pending and i == len(tokens) - 1)
            for i, token in enumerate(tokens)
        ]

    def add(self, token: int) -> None:
        """A token has been chosen."""
        self.missing -= 1
        if self.missing:
            self.pending = [token]
        else:
            self.index = None


class LlamaCpp(Server):
    """`llama_decode` over batches of several sequences, the greedy choice by NumPy."""

    @staticmethod
    def version() -> str:
        """Of llama-cpp-python."""
        from importlib.metadata import version

        return version("llama-cpp-python")

    @classmethod
    def prepare(cls, source: Source, width: str) -> Path:
        """Write a GGUF file."""
        path = source.checkpoint.with_suffix(f".{FORMATS[width]}.gguf")
        if not path.exists():
            write_gguf(path, source.checkpoint, FORMATS[width])
        return path

    def __init__(self, path: Path, setup: Setup) -> None:
        """Load the file and make a context for all sequences."""
        import llama_cpp

        self._lib: Any = llama_cpp
        self._silence()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        n_sequences = setup.n_sequences + bool(setup.shared)
        params.n_ctx = n_sequences * setup.context
        params.n_seq_max = n_sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = setup.threads
        params.kv_unified = False
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        self.setting = (
            f"{FORMATS[setup.width]}, hidden padded to {BLOCK}s, flash attention, kv float16"
        )
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        self._n_batch = params.n_batch
        self._waiting: deque[tuple[int, Request]] = deque()
        self._slots = [Slot(sequence) for sequence in range(setup.n_sequences)]
        self._shared = setup.shared
        self._shared_sequence = setup.n_sequences
        if setup.shared:
            rows = [(t, i, self._shared_sequence, False) for i, t in enumerate(setup.shared)]
            self._decode_all(rows)

    def _silence(self) -> None:
        self._log = self._lib.llama_log_callback(lambda *_: None)
        self._lib.llama_log_set(self._log, ctypes.c_void_p(0))

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Prefill in batches of at most `n_batch` tokens, then one token of all in each step."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        outputs: list[list[int]] = [[] for _ in prompts]
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for step in range(new_tokens):
            for sequence, token in self._decode_all(rows):
                outputs[sequence].append(token)
            rows = [
                (output[-1], len(prompt) + step, sequence, True)
                for sequence, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
            ]
        return outputs

    def submit(self, index: int, request: Request) -> None:
        """Queue it for a free slot."""
        self._waiting.append((index, request))

    def step(self) -> list[tuple[int, int]]:
        """One token of each text in progress, the rest of the batch for prompts."""
        for slot in self._slots:
            if slot.index is None and self._waiting:
                self._occupy(slot, *self._waiting.popleft())
        rows: list[Row] = []
        for slot in sorted(self._slots, key=lambda slot: len(slot.pending)):
            rows += slot.take(self._n_batch - len(rows))
        news = []
        for sequence, token in self._decode(rows):
            slot = self._slots[sequence]
            assert slot.index is not None
            news.append((slot.index, 1))
            slot.add(token)
        return news

    def _occupy(self, slot: Slot, index: int, request: Request) -> None:
        memory = self._lib.llama_get_memory(self._context)
        self._lib.llama_memory_seq_rm(memory, slot.sequence, -1, -1)
        if self._shared:
            self._lib.llama_memory_seq_cp(memory, self._shared_sequence, slot.sequence, -1, -1)
        slot.index, slot.missing = index, request.new_tokens
        slot.position = len(self._shared)
        slot.pending = request.prompt[slot.position :]

    def _decode_all(self, rows: list[Row]) -> list[tuple[int, int]]:
        return [
            choice
            for start in range(0, len(rows), self._n_batch)
            for choice in self._decode(rows[start : start + self._n_batch])
        ]

    def _decode(self, rows: list[Row]) -> list[tuple[int, int]]:
        """One forward; returns (sequence, next token) of the rows that choose one."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, chooses) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = chooses
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        return [
            (sequence, int(np.argmax(self._logits(i))))
            for i, (_, _, sequence, chooses) in enumerate(rows)
            if chooses
        ]

    def _logits(self, row: int) -> npt.NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))
