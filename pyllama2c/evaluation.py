"""How well a model predicts texts: perplexity, and bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyllama2c.errors import ArgumentError, TokenizerError
from pyllama2c.model import Model


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What predicting some stories has cost.

    Attributes:
        stories: how many there were; empty ones are left out.
        tokens: how many were predicted: every token of every story, but not the end behind it.
        characters: of the stories, as Unicode counts them.
        nats: the sum of -log p(token | what is before it).
    """

    stories: int
    tokens: int
    characters: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """Cross-entropy, comparable between models of one tokenizer alone."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token): among how many tokens the model wavers, so to speak."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    @property
    def bits_per_character(self) -> float:
        """Comparable between models of any tokenizer."""
        return self.nats / self.characters / math.log(2)


def evaluate(model: Model, stories: Iterable[str]) -> Evaluation:
    """Let a model predict stories, each from a BOS of its own.

    A story that is longer than the context is read through overlapping windows: each begins with a
    BOS and goes on with the half context of tokens before those that it is to predict, so that all
    but the first tokens of a story are predicted from at least half a context.

    Args:
        model: with a tokenizer. Its dtype and kv_dtype are what is measured.
        stories: texts; read one at a time.

    Raises:
        TokenizerError: the model has no tokenizer.
        ArgumentError: there is nothing to predict in the stories.
    """
    if model.tokenizer is None:
        raise TokenizerError(f"{model._no_tokenizer}: pass Model(..., tokenizer=...)")
    n_stories = n_tokens = n_characters = 0
    nats = 0.0
    for story in stories:
        ids = model.tokenizer.encode(story)
        if len(ids) < 2:
            continue
        n_stories += 1
        n_tokens += len(ids) - 1
        n_characters += len(story)
        for window, n_known in windows(ids, model.config.max_seq_len):
            nats -= float(model.log_probabilities(window)[n_known - 1 :].sum(dtype=float))
    if n_tokens == 0:
        raise ArgumentError("stories hold no text")
    return Evaluation(n_stories, n_tokens, n_characters, nats)


def windows(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """Yield windows of a story that predict each token but the first exactly once.

    Args:
        ids: the story, led by BOS.
        context: most tokens that the model reads at once.

    Yields:
        ids of at most ``context + 1`` tokens, of which the last is predicted and never read, and
        how many of them are given. All but the first window repeat the BOS and half a context.
    """
    yield ids[: context + 1], 1
    done = context + 1
    n_before = max(context // 2 - 1, 0)
    while done < len(ids):
        before = ids[done - n_before : done] if n_before else []
        end = done + context - n_before
        yield [ids[0], *before, *ids[done:end]], 1 + len(before)
        done = end
