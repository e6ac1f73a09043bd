"""`Model`: load a Llama model and let it write."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from pyllama2c import _core, forking
from pyllama2c.arguments import (
    Prompt,
    as_ids,
    as_one,
    as_params,
    as_path,
    as_prompts,
    merged_params,
    parse_bytes,
    parse_kv_type,
    positive,
)
from pyllama2c.config import ModelConfig
from pyllama2c.errors import ArgumentError, CheckpointError, ClosedError, TokenizerError, shown
from pyllama2c.generation import DEFAULT_BOS_ID, Generation
from pyllama2c.loading import load_weights
from pyllama2c.outputs import Chunk, Completion
from pyllama2c.sampling import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack  # known to type checkers wherever it is installed

    from pyllama2c.engine import Engine
    from pyllama2c.sampling import SamplingOptions
    from pyllama2c.tokenizer import Tokenizer

PathLike = str | os.PathLike[str]
DType = Literal["auto", "float32", "bfloat16", "int8", "int4"]
KvDType = Literal["float32", "float16", "int8"]

DEFAULT_MODEL = Path(__file__).parent / "assets" / "tonghua-3m.bin"
"""The model that comes with the package: a teller of Chinese fairy tales."""

BLOCK_TOKENS = _core.BLOCK_TOKENS  # of the KV cache
_DEFAULT_KV_BYTES = 512 << 20
_MAX_BLOCKS = 1 << 17  # 2 million tokens: tiny models need no more, and the books take memory too


class Model:
    """A Llama model, ready to write text.

    One Model serves any number of threads at once: their requests are computed together, and what
    each of them gets depends on its own prompt, parameters and seed alone.

    Args:
        path: a llama2.c checkpoint (v0, v1 or v2; told apart by content), a packed file of
            ``pyllama2c convert``, a Hugging Face directory of a ``LlamaForCausalLM``, or a
            directory of ``pyllama2c train``. Default: the model that comes with the package, which
            tells Chinese fairy tales.
        tokenizer: a `Tokenizer`, or the path of a ``.model``, ``.bin`` or ``.json`` file. Default:
            the one in a packed file, or next to the model (``tokenizer.model``, ``.bin`` or
            ``.json``, ``tok*.model``, ``tok*.bin``). Without any, or with a ``tokenizer.json`` that
            SentencePiece cannot express, the model still works with token ids.
        dtype: how to keep the weights: ``"float32"``, ``"bfloat16"``, ``"int8"`` or ``"int4"``;
            ``"auto"``, the default, keeps what the file stores (float16 becomes float32, which
            holds it exactly). Packed files leave no choice.
        mmap: use the weights of a packed file where they lie: processes share them, and nothing is
            read before it is needed. False copies them into huge pages, as other files' weights
            always are. Default: True for packed files.
        kv_dtype: how to keep keys and values: ``"float32"`` (the default), ``"float16"``, which
            keeps what is beyond 65504 as that, or ``"int8"``.
        n_threads: threads to compute with. Default: the CPUs this process may use (affinity and
            container quota). Small models use fewer where more would not help.
        max_sequences: how many requests are computed together; more wait their turn. Default: 64.
        prefill_chunk: how many prompt tokens a step computes at once beside the texts in progress.
            Default: 64.
        kv_memory: most memory for keys and values, in bytes or as text (``"1GiB"``); taken as it
            is used. What texts leave there is found again by prompts that begin alike. Default:
            512 MiB, less for models whose 32 full contexts need less, and never less than one
            full context, of which the memory of old texts takes two contexts at most. With less
            than one full context texts end where it is full.

    Raises:
        CheckpointError: the file is no usable model; the message names the field.
        TokenizerError: the tokenizer cannot be read or has another vocabulary size.
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        path: PathLike | None = None,
        *,
        tokenizer: Tokenizer | PathLike | None = None,
        dtype: DType = "auto",
        mmap: bool | None = None,
        kv_dtype: KvDType = "float32",
        n_threads: int | None = None,
        max_sequences: int = 64,
        prefill_chunk: int = 64,
        kv_memory: int | str | None = None,
    ) -> None:
        self.path = DEFAULT_MODEL if path is None else as_path("path", path, CheckpointError)
        if mmap is not None and not isinstance(mmap, bool):
            raise ArgumentError(f"mmap is {shown(mmap)}, expected True, False or None")
        self._n_threads = (
            _core.available_cpus() if n_threads is None else positive("n_threads", n_threads, 1024)
        )
        self._prefill_chunk = positive("prefill_chunk", prefill_chunk, 1 << 20)
        max_sequences = positive("max_sequences", max_sequences, 1 << 16)
        kv_bytes = None if kv_memory is None else parse_bytes("kv_memory", kv_memory)

        self._kv_type = parse_kv_type(kv_dtype)
        self._open_weights: _core.Weights | None
        loaded = load_weights(self.path, dtype, mmap, self._n_threads)
        self._open_weights = loaded.weights
        self._format = {"format": loaded.format, "stored_dtype": loaded.stored_dtype}
        self._bos_id = DEFAULT_BOS_ID if loaded.bos_id is None else loaded.bos_id
        self._eos_ids = loaded.eos_ids
        self.config = ModelConfig(**self._weights.config)
        """The model's sizes."""
        self._no_tokenizer = f"no tokenizer was found next to {self.path}"
        self.tokenizer = self._load_tokenizer(tokenizer, loaded.tokenizer)
        """Text to ids and back; None if there is none next to the model."""
        n_blocks = max_cached = self._count_blocks(kv_bytes, self._kv_type)
        if kv_bytes is None:
            # Of what was written before, enough to find the beginnings again that prompts share.
            max_cached = 2 * -(-self.config.max_seq_len // BLOCK_TOKENS)
        self._make_engine: Callable[[], _core.Engine] | None = partial(
            _core.Engine,
            self._weights,
            kv_type=self._kv_type,
            n_threads=self._n_threads,
            max_sequences=max_sequences,
            prefill_chunk=self._prefill_chunk,
            n_blocks=n_blocks,
            max_cached=max_cached,
        )
        self._engine: _core.Engine | None = self._make_engine()
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()  # that others have made of it
        forking.register(self)

    def _load_tokenizer(
        self, tokenizer: Tokenizer | PathLike | None, stored: bytes | None
    ) -> Tokenizer | None:
        from pyllama2c.tokenizer import Tokenizer, find_tokenizer
        from pyllama2c.tokenizer.tokenizer import UnsupportedTokenizerError

        if tokenizer is None:
            if stored is None:
                try:
                    return find_tokenizer(self.path, self.config.vocab_size)
                except UnsupportedTokenizerError as error:
                    self._no_tokenizer = str(error)  # token ids still work
                    return None
            tokenizer = Tokenizer(stored, path=self.path)
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.load(tokenizer)
        tokenizer.check_fits(self.config.vocab_size)
        return tokenizer

    def _count_blocks(self, kv_bytes: int | None, kv_type: _core.KvType) -> int:
        per_block = self._weights.kv_bytes_per_block(kv_type)
        context = -(-self.config.max_seq_len // BLOCK_TOKENS)
        if kv_bytes is None:
            return max(min(32 * context, _DEFAULT_KV_BYTES // per_block), context)
        blocks = kv_bytes // per_block
        if blocks < 1:
            raise ArgumentError(
                f"kv_memory is {kv_bytes} bytes, expected at least {per_block}: "
                f"{BLOCK_TOKENS} tokens' keys and values"
            )
        return min(blocks, max(_MAX_BLOCKS, context))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of them, too
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion | list[Completion]:
        """Write on from a prompt, or from each of a list of prompts, which are computed together.

        Args:
            prompt: text (BOS is put before it; ``""`` starts from nothing) or token ids (taken as
                they are), or a list of either.
            params: a `SamplingParams`; for a list of prompts perhaps one for each.
            options: fields of `SamplingParams` instead, or on top of ``params``:
                ``model.generate("Once", temperature=0, max_tokens=50)``.

        Returns:
            A `Completion`, or a list of them in the order of the prompts. Its text continues the
            prompt and does not repeat it.

        Raises:
            ArgumentError: a parameter or token id is out of range.
            CapacityError: a prompt is longer than the context; or `kv_memory` holds less than that
                and a text of `max_tokens` may not fit it.
            TokenizerError: a text prompt for a model without a tokenizer.
            ClosedError: the model is closed.
        """
        prompts, is_batch = as_prompts("prompt", prompt)
        requests = [
            self._prepare(one, sampling)
            for one, sampling in zip(
                prompts, as_params(params, options, len(prompts), is_batch), strict=True
            )
        ]
        completions = self._run(requests)
        return completions if is_batch else completions[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generator[Chunk, None, None]:
        """Write on from a prompt and hand out the text as it comes.

        Args and errors are those of `generate` for one prompt; they are checked at once.

        Returns:
            A generator of `Chunk`. ``str(chunk)`` is the new text, never half a character; the
            last one has a ``finish_reason`` and the whole ``completion``. Closing the generator
            stops the work at once.
        """
        request = self._prepare(as_one("prompt", prompt), merged_params(params, options))
        chunks = self._stream(request)
        next(chunks)  # up to its first yield: what submitting refuses is refused now
        return chunks

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """What the model expects after each of the tokens.

        Args:
            ids: token ids, at most ``config.max_seq_len`` of them; may be empty.

        Returns:
            float32 array (len(ids), vocab_size): row i scores the token after ``ids[: i + 1]``.
            The same bits whatever the threads, chunks and instruction set.

        Raises:
            ArgumentError: a token id is out of range.
            CapacityError: more ids than the context holds.
            ClosedError: the model is closed.
        """
        return self._weights.logits(
            as_ids(ids, self.config.vocab_size),
            self._kv_type,
            self._n_threads,
            self._prefill_chunk,
        )

    def log_probabilities(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """How likely the model finds each of the tokens, given those before it.

        Args:
            ids: token ids, at most ``config.max_seq_len + 1`` of them; may be empty.

        Returns:
            float32 array (len(ids) - 1): natural logarithms, those of ``ids[1:]``. Takes no memory
            for the logits.

        Raises:
            ArgumentError: a token id is out of range.
            CapacityError: more ids than the context holds.
            ClosedError: the model is closed.
        """
        return self._weights.log_probabilities(
            as_ids(ids, self.config.vocab_size),
            self._kv_type,
            self._n_threads,
            self._prefill_chunk,
        )

    def info(self) -> dict[str, Any]:
        """Facts about the loaded model: format, dtype, sizes in bytes, ISA, threads."""
        size = self.path.stat().st_size if self.path.is_file() else None
        return {
            "path": str(self.path),
            **self._format,
            "file_bytes": size,
            "dtype": self._weights.dtype,
            "weights_bytes": self._weights.nbytes,
            "mapped": self._weights.mapped,
            "kv_dtype": self._kv_type.name,
            "kv_bytes_per_token": self._weights.kv_bytes_per_block(self._kv_type) // BLOCK_TOKENS,
            "isa": _core.isa(),
            "n_threads": self._n_threads if _core.has_openmp() else 1,
            "openmp": _core.has_openmp(),
        }

    def close(self) -> None:
        """Let go of the memory, once texts in progress in other threads have ended.

        Closes the engines that were made of the model. Later calls raise ClosedError.
        """
        for engine in list(self._engines):
            engine._close("the model is closed")
        self._engine = self._make_engine = self._open_weights = None

    def _after_fork(self) -> None:
        # In a child process only the thread that forked is there: what another one was in the
        # middle of computing would never end.
        if self._engine is not None and self._make_engine is not None and self._engine.busy():
            _core.leak(self._engine)
            self._engine = self._make_engine()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._open_weights is None:
            return f"<pyllama2c.Model {self.path.name!r}: closed>"
        c = self.config
        return (
            f"<pyllama2c.Model {self.path.name!r}: {c.n_params:,} parameters, "
            f"{c.vocab_size} tokens, context {c.max_seq_len}>"
        )

    @property
    def _weights(self) -> _core.Weights:
        if self._open_weights is None:
            raise ClosedError("the model is closed")
        return self._open_weights

    @cached_property
    def _fingerprint(self) -> int:
        return self._weights.fingerprint()

    def _open_engine(self) -> _core.Engine:
        if self._engine is None:
            raise ClosedError("the model is closed")
        return self._engine

    def _encode(
        self, prompt: Prompt, after: Sequence[int] | None = None, name: str = "prompt"
    ) -> list[int]:
        """The ids of a prompt, or of what follows the ids `after`."""
        if not isinstance(prompt, str):
            return as_ids(prompt, self.config.vocab_size, name)
        if self.tokenizer is not None:
            if after is None:
                return self.tokenizer.encode(prompt)
            if list(after) in ([], [self.tokenizer.bos_id]):
                return self.tokenizer.encode(prompt, bos=False)
            return self.tokenizer.encode_continuation(prompt)
        if prompt == "":
            return [self._bos_id] if after is None else []
        raise TokenizerError(
            f"{self._no_tokenizer}: pass Model(..., tokenizer=...) or a prompt of token ids"
        )

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> Generation:
        return Generation(
            self._encode(prompt),
            params,
            self.tokenizer,
            self.config.vocab_size,
            eos_ids=self._eos_ids,
        )

    def _run(self, requests: list[Generation]) -> list[Completion]:
        engine = self._open_engine()
        ids: list[int] = []
        try:
            for request in requests:
                _submit(engine, request, ids)
            going = dict(zip(ids, requests, strict=True))
            while going:
                # Without stop strings nobody needs to look before the end.
                to_the_end = not any(request.watches_text for request in going.values())
                for progress in engine.wait(list(going), until_finished=to_the_end):
                    if going[progress.id].push(progress).finish_reason is not None:
                        engine.cancel(progress.id, True)
                        del going[progress.id]
        finally:
            for request_id in ids:  # nothing happens to those that have ended
                engine.cancel(request_id)
        return [cast(Completion, request.completion) for request in requests]

    def _stream(self, request: Generation) -> Generator[Chunk, None, None]:
        engine = self._open_engine()
        ids: list[int] = []
        try:
            _submit(engine, request, ids)
            yield Chunk("", (), None, None)  # for stream(); from here on closing cancels
            while request.completion is None:
                if self._is_left_behind(engine):
                    raise ClosedError("the text began in the process that forked this one")
                for progress in engine.wait(ids):
                    yield request.push(progress)
        finally:
            if not self._is_left_behind(engine):
                for request_id in ids:
                    engine.cancel(request_id)

    def _is_left_behind(self, engine: _core.Engine) -> bool:
        """Whether it is of no use in this process; see `_after_fork`."""
        return self._engine is not None and self._engine is not engine


def _submit(engine: _core.Engine, request: Generation, ids: list[int]) -> None:
    engine.submit(request.prompt_ids, len(request.prompt_ids), request.core_params, ids)
