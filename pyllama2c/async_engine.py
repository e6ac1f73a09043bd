"""`AsyncEngine`: the engine for an asyncio server."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from pyllama2c import _core, forking
from pyllama2c.arguments import Prompt, merged_params, positive
from pyllama2c.engine import DEFAULT_MAX_WAITING, Engine
from pyllama2c.errors import BusyError, ClosedError
from pyllama2c.outputs import Chunk, Completion
from pyllama2c.requests import OF_REQUESTS, OnDeadline, Overflow, Request, Terms
from pyllama2c.session import OF_SESSIONS, SessionBase, new_state, restore_state

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllama2c.model import KvDType, Model
    from pyllama2c.sampling import SamplingOptions, SamplingParams
    from pyllama2c.session import Prefix
    from pyllama2c.session_state import SessionState
    from pyllama2c.stats import EngineStats

# To compute before the event loop is told of tokens in the middle of a text: its thread takes its
# time from those that compute, and finds its code gone from their caches.
_LEAST_SECONDS = 0.016


class Stream:
    """A text as it comes: ``async for chunk in stream``. Made by `AsyncEngine` and `AsyncSession`.

    The text ends where it is, and frees what it holds, when the stream is closed (``async with``
    does so at the end of the block, however it is left), when the task that reads it is cancelled,
    and when nobody holds the stream any more.

    Reading raises BusyError while another task does, ClosedError when the engine or its model is
    closed before the text has ended, and what else ended it, such as want of memory.
    """

    def __init__(self, engine: AsyncEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._reader: asyncio.Task[Any] | None = None
        self._reader_ended = partial(_cancel_with, weakref.ref(self))
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None  # that ended a computation in the middle

    @property
    def text(self) -> str:
        """What was handed out so far; in the end the completion's text."""
        return self._request.text

    @property
    def completion(self) -> Completion | None:
        """The result; None while the text is being written."""
        return self._request.completion

    def cancel(self) -> None:
        """End the text where it is, unless it has ended."""
        self._request.cancel()
        self._end_with(None)
        self._wake()

    async def aclose(self) -> None:
        """The same, for ``contextlib.aclosing``."""
        self.cancel()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._waiter is not None:
            raise BusyError("another task is reading this stream")
        reader = asyncio.current_task()
        if reader is not self._reader:
            self._end_with(reader)
        while not self._request.done:
            chunk = self._engine._fetch(self._request)
            if chunk is not None:
                return chunk
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._waiter = None
        self._end_with(None)
        if self._error is not None:
            raise self._error
        self._engine._check(self._request)
        raise StopAsyncIteration

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self._request.cancel()
        self._end_with(None)

    def _end_with(self, reader: asyncio.Task[Any] | None) -> None:
        """Be cancelled with this task from now on, wherever it is cancelled.

        (Its frames, which hold the stream, may stay alive for a while then.)
        """
        if self._reader is not None:
            self._reader.remove_done_callback(self._reader_ended)
        self._reader = reader
        if reader is not None:
            reader.add_done_callback(self._reader_ended)

    def _fail(self, error: BaseException) -> None:
        if not self._request.done:
            self._error = error
            self.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _cancel_with(stream: weakref.ref[Stream], reader: asyncio.Task[Any]) -> None:
    living = stream()
    if living is not None and reader.cancelled():
        living.cancel()


class AsyncEngine:
    """An `Engine` for asyncio: texts are streamed to tasks, and computed in a thread of its own.

    The event loop never waits for the model. It is told of a text's first token and its end at
    once, and of what comes between every 16 milliseconds, after every pass that takes longer, and
    when half of `max_unread` tokens have come.
    All methods are for the loop's thread; one engine serves one event loop at a time. `async with`
    closes it.

    Args:
        model: what writes. Its weights are shared; closing it closes the engine.
        max_sequences: how many texts are computed together; more wait their turn. Default: 64.
        kv_memory: most memory for keys and values, in bytes or as text. Default: ``"1GiB"``.
        prefill_chunk: prompt tokens that a pass reads beside the texts in progress. Default: 64.
        max_waiting: how many texts may wait, before `Overloaded` is raised; None for any number.
            Default: 1024.
        preallocate: take all of `kv_memory` now. Default: as it is used.
        max_unread: where the reader of a stream is so many tokens behind, its text waits until he
            has come down to half of that. Default: 64.
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
        max_unread: int = 64,
        kv_dtype: KvDType | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._max_unread = positive("max_unread", max_unread, 2**31 - 1)
        self._engine = Engine(
            model,
            max_sequences=max_sequences,
            kv_memory=kv_memory,
            prefill_chunk=prefill_chunk,
            max_waiting=max_waiting,
            preallocate=preallocate,
            kv_dtype=kv_dtype,
            n_threads=n_threads,
        )
        self._streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._executor: ThreadPoolExecutor | None = None
        self._computing_for: asyncio.AbstractEventLoop | None = None
        self._news: deque[int] = deque()  # ids of requests that have any
        forking.register(self)

    @property
    def model(self) -> Model:
        """What writes."""
        return self._engine.model

    @property
    def max_length(self) -> int:
        """Tokens that one text may have, prompt included."""
        return self._engine.max_length

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        overflow: Overflow = "stop",
        **options: Unpack[SamplingOptions],
    ) -> Stream:
        """Write on from a prompt: ``async for chunk in engine.stream("Once")``.

        Args and errors are those of `Engine.submit`; they are checked at once.

        Returns:
            A `Stream` of `Chunk`. The last one has a ``finish_reason`` and the ``completion``.
        """
        terms = Terms(priority, deadline_ms, on_deadline, overflow)
        request = self._engine._submit(
            prompt,
            merged_params(params, options, OF_REQUESTS),
            terms,
            max_unread=self._max_unread,
        )
        return self._follow(request)

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        overflow: Overflow = "stop",
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Write on from a prompt and return the whole.

        Args and errors are those of `Engine.submit`. Cancelling the task cancels the text.
        """
        return await self._finish(
            self.stream(
                prompt,
                params,
                priority=priority,
                deadline_ms=deadline_ms,
                on_deadline=on_deadline,
                overflow=overflow,
                **options,
            )
        )

    def prefix(self, text: Prompt) -> Prefix:
        """A beginning that many sessions share; see `Engine.prefix`."""
        return self._engine.prefix(text)

    def session(
        self,
        name: str = "",
        *,
        prefix: Prefix | Prompt | None = None,
        params: SamplingParams | None = None,
        overflow: Overflow = "stop",
        **options: Unpack[SamplingOptions],
    ) -> AsyncSession:
        """A character with a history. Args and errors are those of `Engine.session`."""
        self._engine._live()
        params = merged_params(params, options, OF_SESSIONS)
        return AsyncSession(self, new_state(self._engine, name, prefix, params, overflow))

    def restore(self, data: bytes) -> AsyncSession:
        """A session that was saved; see `Engine.restore`."""
        self._engine._live()
        return AsyncSession(self, restore_state(self._engine, data))

    def stats(self) -> EngineStats:
        """What the engine is doing and has done. Raises ClosedError if it is closed."""
        return self._engine.stats()

    async def close(self) -> None:
        """Cancel all texts, wait for the pass in progress, and let go of the memory.

        Tasks that wait for a text get a ClosedError.
        """
        self._engine.close()
        self._wake_all()
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, lambda: None)
            executor.shutdown(wait=False)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _follow(self, request: Request) -> Stream:
        stream = Stream(self, request)
        self._streams[request._id] = stream
        try:
            self._compute_on()
        except BaseException:
            stream.cancel()
            raise
        return stream

    @staticmethod
    async def _finish(stream: Stream) -> Completion:
        async with stream:
            async for _ in stream:
                pass
        return cast(Completion, stream.completion)

    def _fetch(self, request: Request) -> Chunk | None:
        """The next piece of a text, None if there is none yet."""
        self._check(request)
        chunk = None
        for progress in self._engine._live().collect([request._id]):
            chunk = self._engine._push(request, progress)
        self._compute_on()  # where it had been waiting for its reader
        return chunk

    def _check(self, request: Request) -> None:
        """Raise ClosedError if that is what ended the text."""
        if request.finish_reason in (None, "cancelled"):
            self._engine._live()

    # One computation follows the other as long as there is something to do. They are no task of
    # the event loop, so that cancelling all tasks does not leave an engine that stands still.

    def _compute_on(self) -> None:
        loop = asyncio.get_running_loop()
        # (Of another loop, which has ended, nothing will be heard any more.)
        if self._computing_for is loop or not self._engine._live().has_work():
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "pyllama2c")
        self._executor.submit(self._compute, self._engine._live(), loop)
        self._computing_for = loop

    def _compute(self, core: _core.Engine, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread that computes."""
        error: BaseException | None = None
        try:
            self._news.extend(core.compute(_LEAST_SECONDS))
        except BaseException as failure:
            error = failure
        # A loop that is closed meanwhile leaves the news to the next one.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._computed, error)

    def _computed(self, error: BaseException | None) -> None:
        self._computing_for = None
        if error is not None:
            for failed in list(self._streams.values()):
                failed._fail(error)
            return
        # The next computation goes on while the loop's thread makes text of this one's tokens.
        try:
            self._compute_on()
        except ClosedError:
            self._wake_all()
            return
        while self._news:
            stream = self._streams.get(self._news.popleft())
            if stream is not None:
                stream._wake()

    def _wake_all(self) -> None:
        for stream in list(self._streams.values()):
            stream._wake()

    def _after_fork(self) -> None:
        """In a child process there is no thread that computes, and no event loop."""
        self._engine._after_fork()
        for stream in list(self._streams.values()):
            stream._request.cancel()
        self._streams.clear()
        self._executor = None
        self._computing_for = None


class AsyncSession(SessionBase):
    """A character with a history. Made by `AsyncEngine.session` and `AsyncEngine.restore`.

    What `Session` says of its history and its random numbers holds here too.
    """

    def __init__(self, engine: AsyncEngine, state: SessionState) -> None:
        super().__init__(engine._engine, state)
        self._async_engine = engine

    def stream(
        self,
        text: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        **options: Unpack[SamplingOptions],
    ) -> Stream:
        """Say something: ``async for chunk in session.stream("Hello")`` is the answer.

        Args and errors are those of `Session.send`; they are checked at once.
        """
        terms = Terms(priority, deadline_ms, on_deadline)
        asyncio.get_running_loop()  # raises without one, before anything is said
        engine = self._async_engine
        request = self._start(
            text, params, options, terms, announce=True, max_unread=engine._max_unread
        )
        return engine._follow(request)

    async def send(
        self,
        text: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Say something and wait for the answer. Args and errors are those of `Session.send`.

        Cancelling the task cancels the answer.
        """
        stream = self.stream(
            text,
            params,
            priority=priority,
            deadline_ms=deadline_ms,
            on_deadline=on_deadline,
            **options,
        )
        return await self._async_engine._finish(stream)

    def cancel(self) -> None:
        """End the text in progress, if any; what was handed out of it stays in the history."""
        super().cancel()
        self._async_engine._wake_all()

    def fork(self, name: str | None = None) -> AsyncSession:
        """Another session with the same past; see `Session.fork`."""
        return AsyncSession(self._async_engine, self._copy(name))
