"""Which tokens a training step sees: a function of the seed and the step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyllama2c.data.tokens import Tokens, open_tokens, sha256
from pyllama2c.errors import DataError
from pyllama2c.train.config import RunConfig

IGNORED = -1  # a target that does not count
_SCAN = 1 << 24  # tokens looked at in one go, so that a large file does not fill the memory


class Windows:
    """Pieces of a token stream, in an order that is shuffled anew for each pass over them.

    Nothing here has a state that a checkpoint would have to keep: batch ``n`` of a seed is always
    the same.

    Args:
        tokens: the stream (N,), each story led by BOS.
        length: tokens of a window.
        mode: ``"chunks"`` or ``"stories"``, see `DataConfig`.
        bos_id: the token that begins a story.
    """

    def __init__(self, tokens: Tokens, length: int, mode: str, bos_id: int) -> None:
        self.tokens = tokens
        self.length = length
        self.bos_id = bos_id
        if mode == "stories":
            self.starts = _find(tokens, bos_id)
        else:
            self.starts = np.arange(0, len(tokens) - length, length)
        if not len(self.starts):
            raise DataError(
                f"{len(tokens)} tokens are too few for a window of {length}"
                + (" or hold no BOS" if mode == "stories" else "")
            )
        self._order: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, number: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return tokens and targets, (size, length) each, of shuffled batch ``number``."""
        items = range(number * size, (number + 1) * size)
        return self._stack([self._shuffled(item, seed) for item in items], one_story=False)

    def in_order(self, size: int, limit: int, one_story: bool) -> list[tuple[Tensor, Tensor]]:
        """Return up to ``limit`` batches of the unshuffled windows; the last may be smaller.

        With ``one_story`` the targets after the end of a window's first story do not count.
        """
        ends = range(0, min(len(self), size * limit), size)
        return [self._stack(list(range(i, min(i + size, len(self)))), one_story) for i in ends]

    def _shuffled(self, item: int, seed: int) -> int:
        epoch, place = divmod(item, len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            self._order = (seed, epoch), order
        return int(self._order[1][place])

    def _stack(self, windows: list[int], one_story: bool) -> tuple[Tensor, Tensor]:
        stacked = np.full((len(windows), self.length + 1), IGNORED, dtype=np.int64)
        for row, window in zip(stacked, windows, strict=True):
            start = self.starts[window]
            piece = self.tokens[start : start + self.length + 1]
            row[: len(piece)] = piece
            if len(piece) <= self.length:  # the stream ends here, and with it its last story
                row[len(piece)] = self.bos_id
            if one_story:
                ends = np.flatnonzero(row[1:] == self.bos_id)
                if len(ends):
                    row[ends[0] + 2 :] = IGNORED
        both = torch.from_numpy(stacked)
        return both[:, :-1].clamp(min=0), both[:, 1:].contiguous()


def _find(tokens: Tokens, wanted: int) -> npt.NDArray[np.int64]:
    return np.concatenate(
        [
            np.flatnonzero(tokens[begin : begin + _SCAN] == wanted) + begin
            for begin in range(0, len(tokens), _SCAN)
        ]
        or [np.empty(0, np.int64)]
    )


def open_windows(config: RunConfig) -> tuple[Windows, Windows, float]:
    """Open the training and the validation data of a run.

    Returns:
        Both, and the tokens per character of the validation stories (BOS included), by which a
        loss per token becomes a loss per character.

    Raises:
        DataError: a file cannot be read, is too short, or belongs to another tokenizer or
            vocabulary; names it.
    """
    data = config.data
    if not Path(data.tokenizer).is_file():
        raise DataError(f"{data.tokenizer}: no such file; `pyllama2c tokenizer train` makes it")
    tokenizer = sha256(data.tokenizer)
    opened = []
    for name in (data.train, data.validation):
        tokens, info = open_tokens(name)
        if info.vocab_size != config.model.vocab_size:
            raise DataError(
                f"{name}: has a vocabulary of {info.vocab_size}, but the model's vocab_size is "
                f"{config.model.vocab_size}"
            )
        if info.tokenizer_sha256 != tokenizer:
            raise DataError(f"{name}: was made with another tokenizer than {data.tokenizer}")
        try:
            opened.append(Windows(tokens, config.model.max_seq_len, data.windows, info.bos_id))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    return opened[0], opened[1], info.tokens / max(1, info.characters)
