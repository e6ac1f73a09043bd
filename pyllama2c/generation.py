"""One request between the engine, which knows token ids, and the caller, who knows text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyllama2c import _core
from pyllama2c.arguments import as_utf8
from pyllama2c.errors import ArgumentError
from pyllama2c.outputs import Chunk, Completion, FinishReason, Timings, Usage
from pyllama2c.stop_matcher import StopMatcher

if TYPE_CHECKING:
    from pyllama2c.sampling import SamplingParams
    from pyllama2c.tokenizer import Detokenizer, Tokenizer

# llama2.c's special tokens, for models that come without a tokenizer and do not name theirs.
DEFAULT_BOS_ID = 1
DEFAULT_EOS_ID = 2

_REASONS: dict[_core.FinishReason, FinishReason] = {
    _core.FinishReason.STOP: "stop",
    _core.FinishReason.LENGTH: "length",
    _core.FinishReason.DEADLINE: "deadline",
    _core.FinishReason.CANCELLED: "cancelled",  # memory ran out in the middle of a pass
}


class Generation:
    """Turns the engine's tokens of one request into text, and in the end into a `Completion`.

    Args:
        prompt_ids: what the text continues.
        params: how to sample.
        tokenizer: for the text; None works with ids alone.
        vocab_size: of the model.
        eos_ids: what ends a text by the model's own words, beside what the tokenizer says.
        written: tokens that were generated before, in another process perhaps; their text is not
            handed out again, but it is part of the completion.
        rng_state: where the random stream stands after them. Default: at the seed.
        on_deadline: what to make of a text that was not finished in time.

    Raises:
        ArgumentError: the parameters do not fit the vocabulary.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        *,
        eos_ids: Sequence[int] = (),
        written: Sequence[int] = (),
        rng_state: int | None = None,
        on_deadline: Callable[[str], str] | None = None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.params = params
        self.seed = _fresh_seed() if params.seed is None else params.seed
        self.core_params = _core_params(params, tokenizer, vocab_size, eos_ids)
        self.core_params.rng_state = self.seed if rng_state is None else rng_state
        if params.stop and tokenizer is None:
            raise ArgumentError(f"stop is {params.stop!r}, but the model has no tokenizer")
        self._tokenizer = tokenizer
        self._detokenizer = _detokenizer(tokenizer, self.prompt_ids) if tokenizer else None
        self._matcher = StopMatcher(params.stop) if params.stop else None
        self._on_deadline = on_deadline
        self._texts = [self._show(token) for token in written]
        self.ids = list(written)
        """What was generated so far."""
        self._n_written = len(self.ids)
        self.completion: Completion | None = None
        """The result, once the text has ended."""

    @property
    def watches_text(self) -> bool:
        """Whether the text can end the request, so that it has to be looked at token by token."""
        return self._matcher is not None

    @property
    def text(self) -> str:
        """What was handed out so far."""
        return "".join(self._texts)

    @property
    def rng_state(self) -> int:
        """Where the random stream stands after `ids`: one number is drawn for each token."""
        draws = len(self.ids) - self._n_written
        if self.completion is not None and self.completion.usage.completion_tokens > len(self.ids):
            draws += 1  # the end token
        if self.params.temperature == 0:
            draws = 0
        return _core.advance_rng(self.core_params.rng_state, draws)

    def push(self, progress: _core.Progress) -> Chunk:
        """Take the engine's news; the chunk has a finish_reason if the text has ended with it."""
        # This runs for every token of every text.
        ids = progress.tokens
        text = ""
        finish: FinishReason | None = None
        for n_used, token in enumerate(ids, start=1):
            text += self._show(token)
            if self._matcher is not None and self._matcher.matched is not None:
                finish, ids = "stop", ids[:n_used]
                break
        else:
            if progress.finished:
                finish = _REASONS[progress.finish]
                text += self._flush()
        self.ids += ids
        self._texts.append(text)
        if finish is not None:
            self._finish(finish, progress)
        completion = self.completion
        reason = None if completion is None else completion.finish_reason
        return Chunk(text, tuple(ids), reason, completion)

    def cancel(self) -> None:
        """End the text where it is, unless it has ended."""
        if self.completion is None:
            usage = Usage(len(self.prompt_ids), len(self.ids))
            self.completion = Completion(
                self.text, tuple(self.ids), "cancelled", usage, self.seed, Timings(0.0, 0.0, 0.0)
            )

    def _show(self, token: int) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.push(token)
        return self._matcher.push(text) if self._matcher is not None else text

    def _flush(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text
        shown = self._matcher.push(text)
        return shown + self._matcher.flush()

    def _finish(self, finish: FinishReason, progress: _core.Progress) -> None:
        text, ids = self.text, self.ids
        if finish == "deadline" and self._on_deadline is not None:
            text = self._on_deadline(text)
            as_utf8("on_deadline's result", text)
            if self.completion is not None:  # it has cancelled the text, or closed the engine
                return
            if self._tokenizer is not None:  # without one there is no text to cut
                ids = self.ids[: self._within(text)[0]]
        ended_by_token = progress.finish == _core.FinishReason.STOP and finish == "stop"
        n_tokens = len(self.ids) + (ended_by_token and not self._matched)
        decode = progress.decode_seconds
        # The first token comes out of the prefill; those written before took none of the time.
        n_decoded = n_tokens - self._n_written - 1
        self.completion = Completion(
            text=text,
            token_ids=tuple(ids),
            finish_reason=finish,
            usage=Usage(len(self.prompt_ids), n_tokens),
            seed=self.seed,
            timings=Timings(
                progress.prefill_seconds, decode, n_decoded / decode if decode > 0 else 0.0
            ),
        )

    @property
    def _matched(self) -> bool:
        return self._matcher is not None and self._matcher.matched is not None

    def spoken_ids(self) -> list[int]:
        """Ids that say what the completion says: `ids`, but for what was cut off or replaced."""
        completion = self.completion
        if completion is None or self._tokenizer is None:
            return self.ids
        if completion.text == self.text and not self._matched:
            return self.ids
        n_ids, n_characters = self._within(completion.text)
        rest = completion.text[n_characters:]
        return self.ids[:n_ids] + self._tokenizer.encode_continuation(rest)

    def _within(self, text: str) -> tuple[int, int]:
        """How many leading ids `text` begins with, and how many characters of it they make."""
        if self._tokenizer is None or not self.text.startswith(text):
            return 0, 0
        detokenizer = _detokenizer(self._tokenizer, self.prompt_ids)
        n_ids = n_characters = length = 0
        for n, token in enumerate(self.ids, start=1):
            length += len(detokenizer.push(token))
            if length > len(text):
                break
            if len(detokenizer.state()) == 1:  # not in the middle of a character
                n_ids, n_characters = n, length
        return n_ids, n_characters


def _fresh_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")  # `secrets` would double the time of importing


def _detokenizer(tokenizer: Tokenizer, prompt_ids: list[int]) -> Detokenizer:
    from pyllama2c.tokenizer import Detokenizer

    return Detokenizer(tokenizer, prompt_ids)


def _core_params(
    params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Sequence[int]
) -> _core.SamplingParams:
    stop_ids = set(params.stop_token_ids)
    for name, ids in (("stop_token_ids", stop_ids), ("logit_bias", set(params.logit_bias or ()))):
        if ids and max(ids) >= vocab_size:
            raise ArgumentError(f"{name} names token {max(ids)}, expected 0 to {vocab_size - 1}")
    if not params.ignore_eos:
        stop_ids.update(eos_ids)
        if tokenizer is not None:
            stop_ids |= {tokenizer.bos_id, tokenizer.eos_id}
        elif not eos_ids:
            stop_ids |= {DEFAULT_BOS_ID, DEFAULT_EOS_ID}
    core = _core.SamplingParams()
    core.temperature = params.temperature
    core.top_k = params.top_k
    core.top_p = params.top_p
    core.min_p = params.min_p
    core.repetition_penalty = params.repetition_penalty
    core.presence_penalty = params.presence_penalty
    core.frequency_penalty = params.frequency_penalty
    core.logit_bias = sorted((params.logit_bias or {}).items())
    core.max_tokens = -1 if params.max_tokens is None else params.max_tokens
    core.stop_token_ids = sorted(stop_ids)
    return core
