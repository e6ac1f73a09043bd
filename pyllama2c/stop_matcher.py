"""Finding stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes a text on up to the first stop string, never showing any part of one.

    The first is the one that is complete first; among those that end at the same character, the
    longest. So the result does not depend on how the text was cut into pieces. What could still
    become a stop string is held back, nothing else.

    One Knuth-Morris-Pratt automaton per string: a push costs time in proportion to the new text.
    What is held back is known from the automata's states and need not be stored.
    """

    __slots__ = ("_fails", "_first_characters", "_states", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._fails = [_failure_function(stop) for stop in self._stops]
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._states = [0] * len(self._stops)  # how many characters of each are matched
        self.matched: str | None = None
        """The stop string that was found, once there is one; the text has ended then."""

    def push(self, text: str) -> str:
        """The text that is certain to be shown now; "" once a stop string was found."""
        if self.matched is not None:
            return ""
        held = self._held()
        if not held and self._first_characters.isdisjoint(text):
            return text
        for position, character in enumerate(text, start=len(held) + 1):
            for i, stop in enumerate(self._stops):
                state = self._states[i]
                while state and stop[state] != character:
                    state = self._fails[i][state - 1]
                state += stop[state] == character
                self._states[i] = state
                if state == len(stop) and len(stop) > len(self.matched or ""):
                    self.matched = stop
            if self.matched is not None:
                return (held + text)[: position - len(self.matched)]
        whole = held + text
        return whole[: len(whole) - max(self._states)]

    def flush(self) -> str:
        """The end of the text: what was held back and did not become a stop string."""
        held = "" if self.matched is not None else self._held()
        self._states = [0] * len(self._stops)
        return held

    def _held(self) -> str:
        longest = max(range(len(self._stops)), key=self._states.__getitem__, default=None)
        return "" if longest is None else self._stops[longest][: self._states[longest]]


def _failure_function(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also a suffix.

    Knuth, Morris, Pratt: Fast pattern matching in strings, 1977.
    """
    fail = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = fail[length - 1]
        length += pattern[i] == pattern[length]
        fail[i] = length
    return fail
