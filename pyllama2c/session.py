"""`Session`: a character with a history; `Prefix`: what many of them begin with."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllama2c import saved
from pyllama2c.arguments import Prompt, as_one, merged_params
from pyllama2c.errors import ArgumentError, BusyError, CapacityError, RestoreError, shown
from pyllama2c.generation import Generation
from pyllama2c.model import BLOCK_TOKENS
from pyllama2c.outputs import Chunk, Completion
from pyllama2c.requests import OnDeadline, Overflow, Request, Terms
from pyllama2c.session_state import Draft, SessionState
from pyllama2c.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllama2c.engine import Engine
    from pyllama2c.sampling import SamplingOptions, SamplingParams


# Names of what a session and its texts take beside `SamplingOptions`.
OF_SESSIONS = ("name", "prefix", "overflow")
OF_TEXTS = ("priority", "deadline_ms", "on_deadline")


class Prefix:
    """A beginning that many sessions share. Made by `Engine.prefix`."""

    __slots__ = ("_engine", "ids")

    def __init__(self, engine: Engine, ids: list[int]) -> None:
        self._engine = engine
        self.ids = tuple(ids)
        """Its token ids."""

    def extend(self, text: Prompt) -> Prefix:
        """A longer prefix that shares this one's keys and values.

        Raises ArgumentError and TokenizerError as `Engine.submit` does, ClosedError if the engine
        is closed.
        """
        self._engine._live()
        more = self._engine.model._encode(as_one("text", text), self.ids, "text")
        return Prefix(self._engine, [*self.ids, *more])

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Prefix of {len(self)} tokens>"


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said to a character, and what it answered."""

    said: str
    answer: str


class SessionBase:
    """What `Session` and `AsyncSession` have in common."""

    def __init__(self, engine: Engine, state: SessionState) -> None:
        self._engine = engine
        self._state = state
        self._request: Request | None = None

    @property
    def name(self) -> str:
        """What it was called when it was made."""
        return self._state.name

    @property
    def params(self) -> SamplingParams:
        """How it talks, unless a call says otherwise."""
        return self._state.params

    @property
    def ids(self) -> tuple[int, ...]:
        """The context: the ids of prefix and turns, and of a text in progress what it has so far.

        What slides out of the context during a text leaves them when the next one begins.
        """
        with self._engine._lock:
            draft = self._state.draft
            return (*self._state.ids, *(draft.written if draft else ()))

    @property
    def text(self) -> str:
        """The text of the context."""
        return self._show((), list(self.ids))

    @property
    def history(self) -> list[Turn]:
        """The finished turns that the context holds, the oldest first."""
        with self._engine._lock:
            ids, turns = self._state.ids, list(self._state.turns)
            position = self._state.n_prefix
        history = []
        for n_said, n_answered in turns:
            # Half a character that the answer before ended in was shown with that answer.
            said = self._show(ids[:position], ids[position : position + n_said], anew=True)
            position += n_said
            answer = self._show(ids[:position], ids[position : position + n_answered])
            position += n_answered
            history.append(Turn(said, answer))
        return history

    @property
    def busy(self) -> bool:
        """Whether a text is being written."""
        return self._request is not None and not self._request.done

    @property
    def unfinished(self) -> bool:
        """Whether there is a text to finish: it was saved, or forked, while it was written."""
        return not self.busy and self._state.draft is not None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that the context takes in the cache while it is warm.

        Blocks that sessions share count in each of them.
        """
        blocks = -(-min(len(self.ids), self._engine.max_length) // BLOCK_TOKENS)
        return blocks * self._engine._block_bytes

    def save(self) -> bytes:
        """All there is to know, in two bytes a token and some hundred more.

        `Engine.restore` makes a session of it that goes on with the very next token, in another
        process, on another machine: of a text in progress, the one after those handed out.
        Save before the model is closed: afterwards it may raise ClosedError.
        """
        with self._engine._lock:
            return saved.save(self._state, self._engine._origin)

    def cancel(self) -> None:
        """End the text in progress, if any; what was handed out of it stays in the history."""
        request = self._request
        if request is not None:
            request.cancel()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self.ids)} tokens>"

    def _copy(self, name: str | None) -> SessionState:
        with self._engine._lock:
            state = self._state.copy()
        if name is not None:
            state.name = _checked_name(name)
        return state

    def _show(
        self, before: tuple[int, ...] | list[int], ids: list[int], *, anew: bool = False
    ) -> str:
        tokenizer = self._engine.model.tokenizer
        if tokenizer is None:
            return ""
        detokenizer = Detokenizer(tokenizer, before)
        if anew:
            detokenizer.flush()
        return "".join(map(detokenizer.push, ids)) + detokenizer.flush()

    def _start(
        self,
        text: Prompt | None,
        params: SamplingParams | None,
        options: SamplingOptions,
        terms: Terms,
        *,
        announce: bool,
        max_unread: int = 0,
    ) -> Request:
        engine, state = self._engine, self._state
        core = engine._live()
        terms = dataclasses.replace(terms, overflow=state.overflow)
        request: Request | None = None
        try:
            with engine._lock:
                draft, ids, n_dropped = self._next_text(text, params, options)
                generation = engine._generation(
                    ids, draft.params, terms, written=draft.written, rng_state=draft.rng_state
                )
                request = engine._launch(
                    core,
                    generation,
                    terms,
                    n_keep=state.n_prefix,
                    announce=announce,
                    max_unread=max_unread,
                    session=self,
                )
                # The lists are one: what is handed out can be saved.
                draft.written = generation.ids
                if n_dropped is not None:
                    state.begin(ids, n_dropped, draft)
                self._request = request
                return request
        except BaseException:  # a signal's handler may raise anywhere
            if request is not None:
                request.cancel()
            raise

    def _next_text(
        self, text: Prompt | None, params: SamplingParams | None, options: SamplingOptions
    ) -> tuple[Draft, list[int], int | None]:
        """What is to be written, on which ids, and how many had to go before: None if it goes on.

        The caller holds the engine's lock.
        """
        engine, state = self._engine, self._state
        if self.busy:
            raise BusyError(f"the session {self.name!r} is still talking: one text at a time")
        if self._request is not None:  # a signal's handler raised as it ended
            self._end(self._request._generation)
        if text is None and state.draft is not None:
            if params is not None or options:
                raise ArgumentError(
                    "a text that was saved half-written goes on with its own parameters; "
                    "pass none, or pass a text to begin a new one"
                )
            return state.draft, state.ids, None
        said = [] if text is None else self._encode(text)
        ids, n_dropped = state.context_with(said, engine.max_length)
        if len(ids) > engine.max_length:
            raise CapacityError(
                f"the session {self.name!r} has {len(ids)} tokens with what was said, at "
                f'most {engine.max_length} fit the context; one with overflow="slide" '
                "forgets the oldest"
            )
        return self._new_draft(len(said), params, options), ids, n_dropped

    def _encode(self, text: Prompt) -> list[int]:
        return self._engine.model._encode(as_one("text", text), self.ids, "text")

    def _new_draft(
        self, n_said: int, params: SamplingParams | None, options: SamplingOptions
    ) -> Draft:
        state = self._state
        own = merged_params(state.params if params is None else params, options, OF_TEXTS)
        if (params is None or params.seed is None) and "seed" not in options:
            rng_state = state.draft.rng_state if state.draft else state.rng_state
            own = own.replace(seed=rng_state)
        elif own.seed is None:
            own = own.replace(seed=secrets.randbits(32))
        return Draft(own, n_said, [])

    def _end(self, generation: Generation) -> None:
        # The request calls this, under the engine's lock.
        if self._state.draft is not None:
            self._state.end(generation.spoken_ids(), generation.rng_state)
        self._request = None


class Session(SessionBase):
    """A character with a history. Made by `Engine.session` and `Engine.restore`.

    What it has heard and said is the context of what it says next. The keys and values of its
    context stay in the engine's cache as long as there is room, those used longest ago go first,
    and what is gone is computed again, to the same bits.

    Its random numbers are one stream: the same things said in the same order are answered alike.
    """

    def send(
        self,
        text: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Say something and wait for the answer.

        Args:
            text: what follows in the context, exactly as given (a space or a line break before it
                is the caller's business), or token ids. None adds nothing: the character goes on,
                with the text in the middle of which it was saved, if so.
            params: instead of the session's own. With a seed, the session's random stream goes on
                from there.
            priority: as in `Engine.submit`.
            deadline_ms: as in `Engine.submit`.
            on_deadline: as in `Engine.submit`; the history holds the final text.
            options: fields of `SamplingParams`, on top.

        Returns:
            The answer, also where another thread cancelled it ("cancelled").

        Raises:
            BusyError: it is still talking.
            CapacityError: the context is full, and the session does not slide; or the engine's
                memory, as in `Engine.submit`.
            Overloaded: too many requests are waiting.
            ArgumentError: an argument is out of range.
            TokenizerError: a text for a model without a tokenizer.
            ClosedError: the engine or its model is closed.
        """
        terms = Terms(priority, deadline_ms, on_deadline)
        request = self._start(text, params, options, terms, announce=False)
        try:
            return self._engine._finish(request)
        except BaseException:  # of a signal's handler, say, before anybody waits for it
            request.cancel()
            raise

    def stream(
        self,
        text: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        **options: Unpack[SamplingOptions],
    ) -> Generator[Chunk, None, None]:
        """Say something and hand out the answer as it comes.

        Args and errors are those of `send`; they are checked at once.

        Returns:
            A generator of `Chunk`. Closing it ends the text where it is.
        """
        terms = Terms(priority, deadline_ms, on_deadline)
        request = self._start(text, params, options, terms, announce=False)
        try:
            chunks = self._engine._stream(request)
            next(chunks)  # up to its first yield: from here on closing cancels
        except BaseException:
            request.cancel()
            raise
        return chunks

    def submit(
        self,
        text: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline_ms: float | None = None,
        on_deadline: OnDeadline = "sentence",
        **options: Unpack[SamplingOptions],
    ) -> Request:
        """Say something; `Engine.step` computes the answer and returns its events.

        Args and errors are those of `send`.
        """
        terms = Terms(priority, deadline_ms, on_deadline)
        return self._start(text, params, options, terms, announce=True)

    def fork(self, name: str | None = None) -> Session:
        """Another session with the same past, which goes its own way from here.

        It shares the keys and values. Where the same things are said to both, they answer alike,
        unless one is given another seed. Without a name it has the same one; ArgumentError if the
        name is no text.
        """
        return Session(self._engine, self._copy(name))


def new_state(
    engine: Engine,
    name: str,
    prefix: Prefix | Prompt | None,
    params: SamplingParams,
    overflow: Overflow,
) -> SessionState:
    """The state of a session that has heard nothing but its prefix."""
    terms = Terms(overflow=overflow)
    if isinstance(prefix, Prefix):
        theirs, ours = prefix._engine.model, engine.model
        if theirs is not ours and _pieces(theirs.tokenizer) != _pieces(ours.tokenizer):
            raise ArgumentError("prefix is of an engine whose model has another tokenizer")
        ids = list(prefix.ids)
    else:
        ids = engine.model._encode(
            "" if prefix is None else as_one("prefix", prefix), name="prefix"
        )
    if len(ids) + 2 > engine.max_length:
        raise CapacityError(
            f"prefix has {len(ids)} tokens, at most {engine.max_length - 2} leave room for a text"
        )
    vocab_size = engine.model.config.vocab_size
    if max(ids, default=0) >= vocab_size:
        raise ArgumentError(f"prefix holds token {max(ids)}, expected 0 to {vocab_size - 1}")
    seed = secrets.randbits(32) if params.seed is None else params.seed
    engine._generation(ids, params, terms)  # refuses what does not fit the vocabulary
    return SessionState(_checked_name(name), params, terms.overflow, seed, ids, len(ids))


def restore_state(engine: Engine, data: bytes) -> SessionState:
    """The state that was saved as `data`."""
    state = saved.load(data, engine._origin, engine.model.config.vocab_size)
    try:
        for params in (state.params, state.draft and state.draft.params):
            if params:
                engine._generation(state.ids, params, Terms())
    except ArgumentError as error:
        raise RestoreError(f"the bytes hold impossible values: {error}") from None
    return state


def _pieces(tokenizer: Tokenizer | None) -> bytes:
    return b"" if tokenizer is None else tokenizer.serialized


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise ArgumentError(f"name is {shown(name)}, expected a str")
    return name
