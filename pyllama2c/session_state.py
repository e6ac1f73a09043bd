"""What a session is: token ids, where the random stream stands, and the text in progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyllama2c import _core
from pyllama2c.sampling import SamplingParams

if TYPE_CHECKING:
    from pyllama2c.requests import Overflow


@dataclass(slots=True)
class Draft:
    """A text in progress."""

    params: SamplingParams
    """Its seed is where the random stream stood when the text began: a state is a seed."""
    n_said: int
    """How many of the session's last ids were said to it."""
    written: list[int]
    """What has been handed out of it so far."""

    @property
    def rng_state(self) -> int:
        """Where the random stream stands now: each token took one number, but for greedy ones."""
        draws = len(self.written) if self.params.temperature > 0 else 0
        return _core.advance_rng(self.params.seed or 0, draws)


@dataclass(slots=True)
class SessionState:
    """All that is saved of a session. Plain data; knows no engine."""

    name: str
    params: SamplingParams
    overflow: Overflow
    rng_state: int
    """Where the random stream stands after the last finished text."""
    ids: list[int]
    """The context: prefix, turns, and what was said to the text in progress."""
    n_prefix: int
    """Leading ids that stay when the context slides."""
    turns: list[tuple[int, int]] = field(default_factory=list)
    """For each finished turn how many ids were said and answered; they follow the prefix."""
    draft: Draft | None = None

    def context_with(self, said: list[int], max_length: int) -> tuple[list[int], int]:
        """The ids with some more, and how many had to go behind the prefix to fit them in.

        The engine slides the same way when a text reaches the end of the context.
        """
        ids = self.ids + (self.draft.written if self.draft else []) + said
        n_dropped = 0
        if self.overflow == "slide" and len(ids) > max_length:
            half = (max_length - self.n_prefix) // 2
            n_dropped = -(-(len(ids) - max_length) // half) * half  # one half after the other
            del ids[self.n_prefix : self.n_prefix + n_dropped]
        return ids, n_dropped

    def begin(self, ids: list[int], n_dropped: int, draft: Draft) -> None:
        """Start a text on the context that `context_with` gave; one half-written ends before."""
        turns, rng_state = self.turns.copy(), self.rng_state
        if self.draft is not None:
            turns.append((self.draft.n_said, len(self.draft.written)))
            rng_state = self.draft.rng_state
        while n_dropped > 0 and turns:
            said, answered = turns[0]
            if n_dropped < said + answered:
                turns[0] = max(said - n_dropped, 0), min(said + answered - n_dropped, answered)
                n_dropped = 0
            else:
                n_dropped -= said + answered
                del turns[0]
        draft.n_said -= n_dropped
        # All at once: a signal's handler may save the session between any two calls.
        self.ids, self.turns, self.rng_state, self.draft = ids, turns, rng_state, draft

    def end(self, answer: list[int], rng_state: int) -> None:
        """Finish the text in progress."""
        ids, turns = self.ids, self.turns
        if self.draft is not None:
            ids = ids + answer
            turns = [*turns, (self.draft.n_said, len(answer))]
        self.ids, self.turns, self.rng_state, self.draft = ids, turns, rng_state, None

    def copy(self) -> SessionState:
        """An independent one."""
        draft = self.draft
        return SessionState(
            self.name,
            self.params,
            self.overflow,
            self.rng_state,
            self.ids.copy(),
            self.n_prefix,
            self.turns.copy(),
            draft and Draft(draft.params, draft.n_said, draft.written.copy()),
        )
