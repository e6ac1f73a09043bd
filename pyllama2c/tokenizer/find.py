"""Finding the tokenizer that lies next to a model."""

from __future__ import annotations

import os
from pathlib import Path

from pyllama2c.errors import TokenizerError
from pyllama2c.tokenizer.tokenizer import Tokenizer


def find_tokenizer(
    model_path: str | os.PathLike[str], vocab_size: int | None = None
) -> Tokenizer | None:
    """Load the tokenizer next to a model file, or inside a model directory.

    Looks for `tokenizer.model`, `tokenizer.bin`, `tokenizer.json`, then `tok*.model` and
    `tok*.bin` in alphabetical order (in the directory of a run of ``pyllama2c train`` also in its
    `best` and `last`), and takes the first that can be read and has `vocab_size` pieces (any, if
    None). Returns None if there is no such file. If there are but none fits,
    raises the TokenizerError of the first: it names both sizes, or the field that is wrong.
    """
    path = Path(model_path)
    folder = path if path.is_dir() else path.parent
    names = ["tokenizer.model", "tokenizer.bin", "tokenizer.json"]
    if path.is_dir():
        # Of a whole run of `pyllama2c train`.
        names += ["best/tokenizer.model", "last/tokenizer.model"]
    candidates = [folder / name for name in names]
    candidates += sorted(folder.glob("tok*.model")) + sorted(folder.glob("tok*.bin"))
    first_error: TokenizerError | None = None
    for candidate in dict.fromkeys(candidates):
        if candidate == path or not candidate.is_file():
            continue
        try:
            tokenizer = Tokenizer.load(candidate)
            if vocab_size is not None:
                tokenizer.check_fits(vocab_size)
            return tokenizer
        except TokenizerError as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return None
