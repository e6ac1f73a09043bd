"""Stop strings across the borders of pieces, against a search in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2c.stop_matcher import StopMatcher

# Few letters, so that strings overlap with themselves and each other.
strings = st.text("ab", min_size=1, max_size=5)


def search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What is before the first stop string in `text`, and the string: the definition."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def could_become(text: str, stops: list[str]) -> int:
    """How many characters at the end of `text` begin a stop string."""
    beginnings = [stop[:n] for stop in stops for n in range(1, len(stop))]
    return max((len(b) for b in beginnings if text.endswith(b)), default=0)


@settings(max_examples=1000)
@given(st.lists(st.text("abc", max_size=4), max_size=8), st.lists(strings, max_size=4))
def test_against_a_search_of_the_whole(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for piece in pieces:
        seen += piece
        shown += matcher.push(piece)
        before, stop = search(seen, stops)
        assert matcher.matched == stop
        if stop is None:  # all is shown but what could still become a stop string
            assert shown == seen[: len(seen) - could_become(seen, stops)]
        else:
            assert shown == before
    shown += matcher.flush()
    assert (shown, matcher.matched) == search(seen, stops)
    assert matcher.flush() == ""


def test_a_stop_string_in_pieces() -> None:
    matcher = StopMatcher(["\n\nUser:", "。"])
    assert matcher.push("Hello\n") == "Hello"
    assert matcher.push("there\n") == "\nthere"
    assert matcher.push("\nUs") == ""
    assert matcher.push("er: more") == ""
    assert matcher.matched == "\n\nUser:"
    assert matcher.push("and more") == ""
    assert matcher.flush() == ""


def test_the_longest_of_those_that_end_together() -> None:
    matcher = StopMatcher(["。", "吧。"])
    assert matcher.push("走吧。好") == "走"
    assert matcher.matched == "吧。"


def test_what_was_held_back_comes_at_the_end() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xab") == "x"
    assert matcher.flush() == "ab"
    assert matcher.matched is None


def test_no_stops() -> None:
    matcher = StopMatcher([])
    assert matcher.push("text") == "text"
    assert matcher.flush() == ""


@pytest.mark.parametrize("size", [100_000])
def test_a_long_stop_string_takes_linear_time(size: int) -> None:
    matcher = StopMatcher(["a" * size + "b"])
    shown = sum(len(matcher.push("aaaa")) for _ in range(size // 2))
    assert shown == size
    assert matcher.push("b") == ""
    assert matcher.matched is not None
