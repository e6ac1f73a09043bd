"""`Engine`: many texts at once, computed by the caller's own loop or by blocking calls."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from pyllama2c import _core, forking
from pyllama2c.arguments import (
    Prompt,
    as_one,
    merged_params,
    milliseconds,
    parse_bytes,
    parse_kv_type,
    physical_memory,
    positive,
)
from pyllama2c.errors import ArgumentError, BusyError, ClosedError, shown
from pyllama2c.generation import Generation
from pyllama2c.model import KvDType, Model
from pyllama2c.outputs import Chunk, Completion
from pyllama2c.requests import OF_REQUESTS, Event, OnDeadline, Overflow, Request, Terms
from pyllama2c.stats import EngineStats, from_core

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllama2c.sampling import SamplingOptions, SamplingParams
    from pyllama2c.saved import Origin
    from pyllama2c.session import Prefix, Session, SessionBase

DEFAULT_MAX_WAITING = 1024


class Engine:
    """Serves many requests and sessions of one model together.

    There is no hidden thread. Either the caller's loop calls `step`, or blocking calls such as
    `Session.send` compute, for everybody, until their own text is done; any number of threads may
    do both at once. For asyncio there is `AsyncEngine`.

    What a request writes depends on the weights, the prompt, the parameters and the seed alone,
    not on who else is served, in which order, on how many threads, or with how much memory, if that
    holds one context at least.

    Args:
        model: what writes. Its weights are shared; closing it closes the engine.
        max_sequences: how many requests are computed together; more wait their turn. Default: 64.
        kv_memory: most memory for keys and values, in bytes or as text; taken as it is used. Where
            it is full, requests wait, and the lowest in priority makes room. Less than one context
            makes texts end (or slide) earlier: see `max_length`. Default: ``"1GiB"``.
        prefill_chunk: how many prompt tokens a step computes beside the texts in progress: more
            reads prompts faster, less keeps the others talking more evenly. Default: 64.
        max_waiting: how many requests may wait beside those being computed, whatever their
            priority: new ones, those sent back, and those whose readers are behind; None for any
            number. Default: 1024.
        preallocate: take all of `kv_memory` now, so that no step has to wait for the operating
            system to hand it out (several milliseconds at times). Default: False.
        kv_dtype: how to keep keys and values. Default: as the model does.
        n_threads: threads to compute with. Default: as many as the model.

    Raises:
        ArgumentError: an argument is out of range.
        ClosedError: the model is closed.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_sequences: int = 64,
        kv_memory: int | str = "1GiB",
        prefill_chunk: int = 64,
        max_waiting: int | None = DEFAULT_MAX_WAITING,
        preallocate: bool = False,
        kv_dtype: KvDType | None = None,
        n_threads: int | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise ArgumentError(f"model is {shown(model)}, expected a pyllama2c.Model")
        self.model = model
        kv_type = model._kv_type if kv_dtype is None else parse_kv_type(kv_dtype)
        if max_waiting is not None:
            max_waiting = positive("max_waiting", max_waiting, 2**31 - 1, least=0)
        if not isinstance(preallocate, bool):
            raise ArgumentError(f"preallocate is {shown(preallocate)}, expected True or False")
        n_blocks = model._count_blocks(parse_bytes("kv_memory", kv_memory), kv_type)
        self._block_bytes = model._weights.kv_bytes_per_block(kv_type)
        if preallocate and n_blocks * self._block_bytes > (most := physical_memory()):
            raise ArgumentError(
                f"kv_memory is {shown(kv_memory)}, of which {n_blocks * self._block_bytes} bytes "
                f"would be used; expected less than this machine's {most} with preallocate"
            )
        self._kv_dtype = kv_type.name
        self._make_core: Callable[[], _core.Engine] | None = partial(
            _core.Engine,
            model._weights,
            kv_type=kv_type,
            n_threads=(
                model._n_threads if n_threads is None else positive("n_threads", n_threads, 1024)
            ),
            max_sequences=positive("max_sequences", max_sequences, 1 << 16),
            prefill_chunk=positive("prefill_chunk", prefill_chunk, 1 << 20),
            n_blocks=n_blocks,
            max_waiting=-1 if max_waiting is None else max_waiting,
            preallocate=preallocate,
        )
        self._open_core: _core.Engine | None = self._make_core()
        self.max_length: int = self._open_core.max_length
        """Tokens that one text may have, prompt included: the context, or what memory holds."""
        self._closed = ""  # why
        # A request ends at any time: in a step, by cancel(), by the garbage collector's hand.
        self._lock = threading.RLock()
        self._stepping = threading.Lock()
        self._requests: dict[int, Request] = {}  # those whose news step() returns, and streams
        self._stepper: int | None = None  # the thread that steps
        self._news: list[_core.Progress] = []  # to be made events, also where something raises
        self._events: list[Event] = []
        self._talking_seconds = 0.0  # what a step needs to make text of tokens
        model._engines.add(self)
        forking.register(self)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        overflow: Overflow = "stop",
        **options: Unpack[SamplingOptions],
    ) -> Request:
        """Queue a request; `step` computes it and returns its events.

        Args:
            prompt: text (BOS is put before it) or token ids (taken as they are).
            params: a `SamplingParams`.
            options: fields of `SamplingParams` instead, or on top of ``params``.
            priority: higher goes first, and may send lower ones back to wait. From -2**31 to
                2**31 - 1; default: 0.
            deadline_ms: milliseconds from now at which the text ends, finished or not, with the
                finish_reason "deadline". Among equal priorities the earliest deadline goes first.
                Default: never.
            on_deadline: the completion's text is then cut at its last sentence end (。！？.!?). Any
                other text than "sentence" is the line to say where there is no whole sentence
                yet; a function from the text so far makes the final text itself: a quick one, for
                the engine waits for it. (The events before have told the text as it came.)
            overflow: when the context is full, "stop" ends the text; "slide" keeps the prompt (at
                most half of the context), drops half of what follows and goes on; see
                docs/engine.md. Default: "stop".

        Returns:
            The `Request`, with its text so far and in the end its completion.

        Raises:
            ArgumentError: an argument is out of range.
            CapacityError: the prompt can never fit into the context or the engine's memory, or
                with `max_tokens` it would fit the one but not the other.
            Overloaded: `max_waiting` requests are waiting already.
            TokenizerError: a text prompt for a model without a tokenizer.
            ClosedError: the engine or its model is closed.
        """
        terms = Terms(priority, deadline_ms, on_deadline, overflow)
        return self._submit(prompt, merged_params(params, options, OF_REQUESTS), terms)

    def step(self, budget_ms: float | None = None) -> list[Event]:
        """Compute for a while and return what came of it: for each request with news an `Event`.

        Args:
            budget_ms: most milliseconds to take; passes that do not fit go on in the next call. The
                call may take longer by the time of one layer of the model, which it computes even
                with a budget of 0, and where another thread is in `step`, by what that one takes.
                Default: one pass over all requests, however long it takes.

        Returns:
            The events, none when there is nothing to do. A request may have had several tokens.

        Raises:
            ArgumentError: the budget is no number from 0.
            BusyError: a function given as ``on_deadline`` called it.
            ClosedError: the engine or its model is closed.
            Exception: what a function given as ``on_deadline``, or the handler of a signal, raised;
                no event is lost by it, the next call returns them.
        """
        core = self._live()
        start = time.perf_counter()
        budget = None if budget_ms is None else milliseconds("budget_ms", budget_ms) / 1000
        if self._stepper == threading.get_ident():
            raise BusyError("step() was called by a function that step() had called")
        with self._stepping:
            try:
                self._stepper = threading.get_ident()
                if budget is not None:
                    # The time until now, and what making text of the tokens will take.
                    reserve = min(self._talking_seconds, budget / 2)
                    budget = max(budget - reserve - (time.perf_counter() - start), 0.0)
                core.step(budget, self._news)
                computed = time.perf_counter()
                self._take()
                spent = time.perf_counter() - computed
                self._talking_seconds = max(spent, 0.9 * self._talking_seconds)
            finally:
                self._stepper = None
            # Last, for a signal's handler may raise in any call.
            events, self._events = self._events, []
            return events

    def prefix(self, text: Prompt) -> Prefix:
        """A beginning that many sessions share, such as the description of a world.

        Its keys and values are computed once, with the first session that needs them, and found
        again by content: equal prefixes are the same, however they were made. `Prefix.extend`
        makes longer ones: world, persona, dialogue.

        Raises ArgumentError and TokenizerError as `submit` does, ClosedError if the engine is
        closed.
        """
        from pyllama2c.session import Prefix

        self._live()
        return Prefix(self, self.model._encode(as_one("text", text), name="text"))

    def session(
        self,
        name: str = "",
        *,
        prefix: Prefix | Prompt | None = None,
        params: SamplingParams | None = None,
        overflow: Overflow = "stop",
        **options: Unpack[SamplingOptions],
    ) -> Session:
        """A character with a history. See `Session`.

        Args:
            name: for people; need not be unique.
            prefix: what its context begins with and always keeps.
            params: how it talks, unless a call says otherwise. Without a seed one is drawn.
            options: fields of `SamplingParams` instead, or on top of ``params``.
            overflow: when its history outgrows the context, "stop" refuses to go on
                (CapacityError); "slide" forgets the older half of what follows the prefix.

        Raises:
            ArgumentError: an argument is out of range.
            CapacityError: the prefix leaves no room for a text.
            TokenizerError: a text for a model without a tokenizer.
            ClosedError: the engine or its model is closed.
        """
        from pyllama2c.session import OF_SESSIONS, Session, new_state

        self._live()
        params = merged_params(params, options, OF_SESSIONS)
        return Session(self, new_state(self, name, prefix, params, overflow))

    def restore(self, data: bytes) -> Session:
        """A session that was saved by `Session.save`, in this or another process.

        It goes on with the very next token. If it was saved in the middle of a text, sending or
        streaming nothing (None) finishes that text.

        Raises:
            RestoreError: the bytes are corrupted, or of another model or kv_dtype; says which.
            ClosedError: the engine or its model is closed.
        """
        from pyllama2c.session import Session, restore_state

        self._live()
        return Session(self, restore_state(self, data))

    def stats(self) -> EngineStats:
        """What the engine is doing and has done. Raises ClosedError if it is closed."""
        return from_core(self._live().stats())

    def close(self) -> None:
        """Cancel all requests and let go of the memory. Later calls raise ClosedError.

        (An engine that is dropped with requests in progress frees its memory when Python's garbage
        collector finds it.)
        """
        self._close("the engine is closed")

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._open_core is None:
            return f"<Engine: {self._closed}>"
        stats = self.stats()
        return f"<Engine of {self.model!r}: {stats.running} running, {stats.waiting} waiting>"

    def _live(self) -> _core.Engine:
        if self._open_core is None:
            raise ClosedError(self._closed)
        return self._open_core

    @cached_property
    def _origin(self) -> Origin:
        """What a saved session must have in common with this engine."""
        from pyllama2c.saved import Origin

        tokenizer = self.model.tokenizer
        return Origin(
            self.model._fingerprint,
            _fingerprint(tokenizer.serialized) if tokenizer else 0,
            self._kv_dtype,
            self.max_length,
        )

    def _generation(
        self, prompt_ids: Sequence[int], params: SamplingParams, terms: Terms, **more: Any
    ) -> Generation:
        return Generation(
            prompt_ids,
            params,
            self.model.tokenizer,
            self.model.config.vocab_size,
            eos_ids=self.model._eos_ids,
            on_deadline=terms.finisher,
            **more,
        )

    def _submit(
        self, prompt: Prompt, params: SamplingParams, terms: Terms, *, max_unread: int = 0
    ) -> Request:
        core = self._live()
        generation = self._generation(self.model._encode(as_one("prompt", prompt)), params, terms)
        n_keep = min(len(generation.prompt_ids), self.max_length // 2)
        return self._launch(
            core, generation, terms, n_keep=n_keep, announce=True, max_unread=max_unread
        )

    def _launch(
        self,
        core: _core.Engine,
        generation: Generation,
        terms: Terms,
        *,
        n_keep: int,
        announce: bool,
        max_unread: int = 0,
        session: SessionBase | None = None,
    ) -> Request:
        ids: list[int] = []
        try:
            with self._lock:  # a step must not meet the request before it is entered
                core.submit(
                    generation.prompt_ids + generation.ids,
                    len(generation.prompt_ids),
                    generation.core_params,
                    ids,
                    terms.priority,
                    None if terms.deadline_ms is None else terms.deadline_ms / 1000,
                    n_keep if terms.overflow == "slide" else -1,
                    max_unread,
                    announce,
                )
                request = self._requests[ids[0]] = Request(self, ids[0], generation, session)
            return request
        except BaseException:  # a signal's handler may raise anywhere
            with self._lock:
                for request_id in ids:
                    core.cancel(request_id)
                    self._requests.pop(request_id, None)
            raise

    def _stream(self, request: Request) -> Generator[Chunk, None, None]:
        """Compute, for everybody, until the request has ended, and hand out its text."""
        core = self._live()
        try:
            yield Chunk("", (), None, None)  # for the caller; from here on closing cancels
            while not request.done:
                for progress in core.wait([request._id]):
                    chunk = self._push(request, progress)
                    if chunk is not None:
                        yield chunk
            if self._open_core is not core and request.finish_reason == "cancelled":
                self._live()
        finally:
            self._cancel(request)

    def _finish(self, request: Request) -> Completion:
        for _ in self._stream(request):
            pass
        return cast(Completion, request.completion)

    def _take(self) -> None:
        """Make events of the news; what is left when something raises is for the next step."""
        with self._lock:
            while self._news:
                progress = self._news[0]
                request = self._requests.get(progress.id)
                try:
                    del self._news[0]
                    if request is not None and (chunk := request._push(progress)) is not None:
                        self._events.append(Event(request, chunk))
                except BaseException:
                    if request is not None:
                        request._cancel()  # part of its text may be lost
                    raise

    def _push(self, request: Request, progress: _core.Progress) -> Chunk | None:
        """The next piece of a request's text, None if it has ended otherwise meanwhile."""
        with self._lock:
            return request._push(progress)

    def _forget(self, request: Request) -> None:
        if self._requests.get(request._id) is not request:
            return
        if self._open_core is not None:
            # A stop string may have come, and it does not know yet.
            self._open_core.cancel(request._id, request.finish_reason != "cancelled")
        del self._requests[request._id]

    def _cancel(self, request: Request) -> None:
        with self._lock:
            request._cancel()

    def _close(self, why: str) -> None:
        with self._lock:
            if self._open_core is None:
                return
            self._closed = why
            for request in list(self._requests.values()):
                request._cancel()
            self._open_core = self._make_core = None

    def _after_fork(self) -> None:
        """In a child process: only the thread that forked is there."""
        self._lock = threading.RLock()
        self._stepping = threading.Lock()
        self._stepper = None
        if self._open_core is None or self._make_core is None or not self._open_core.busy():
            return
        # Another thread was computing; what it was in the middle of never ends here.
        _core.leak(self._open_core)
        self._open_core = self._make_core()
        self._news.clear()  # ids begin anew
        for request in list(self._requests.values()):
            request._cancel()


def _fingerprint(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
