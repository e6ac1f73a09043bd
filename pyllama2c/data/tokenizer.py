"""Train a SentencePiece BPE tokenizer on a sample of a corpus."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import sentencepiece

from pyllama2c.data.readers import Story
from pyllama2c.errors import ArgumentError, DataError, TokenizerError

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2  # as in Llama and llama2.c
# What SentencePiece leaves out without a word: a text with its mark for the unknown, or longer.
_MARK = "\u2585"
_MAX_BYTES = 1 << 24  # the default is 4192
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.bin", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TokenizerConfig:
    """How to train a tokenizer.

    Args:
        vocab_size: number of pieces, with the three control pieces and, if on, the 256 bytes.
        sample: train on this many stories, drawn at random from all.
        character_coverage: share of the text whose characters get a piece of their own; the
            rarest others are left to the bytes (or to ``<unk>``).
        byte_fallback: spell what has no piece in UTF-8 bytes, so that any text can be encoded.
        split_digits: one piece a digit.
        seed: another seed draws another sample.
    """

    vocab_size: int = 3000
    sample: int = 800_000
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    split_digits: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size < 4:
            raise ArgumentError(f"vocab_size is {self.vocab_size}, expected at least 4")
        if self.sample < 1:
            raise ArgumentError(f"sample is {self.sample}, expected at least 1")
        if not 0.5 < self.character_coverage <= 1:
            raise ArgumentError(
                f"character_coverage is {self.character_coverage}, expected above 0.5 and up to 1"
            )


def sample_stories(stories: Iterable[Story], size: int, seed: int) -> list[str]:
    """Draw ``size`` stories at random, each with the same chance (reservoir sampling).

    The order of what is drawn is the order of ``stories`` where there are fewer than ``size``.
    Source: Vitter 1985, "Random Sampling with a Reservoir", algorithm R.

    Raises:
        DataError: a story cannot be encoded; names it.
    """
    random = Random(seed)
    reservoir: list[str] = []
    for count, story in enumerate(stories):
        story.encode()  # refuses what SentencePiece could not take
        if count < size:
            reservoir.append(story.text)
        elif (place := random.randrange(count + 1)) < size:
            reservoir[place] = story.text
    return reservoir


def train_tokenizer(stories: Iterable[Story], config: TokenizerConfig | None = None) -> bytes:
    """Train a SentencePiece BPE model and return it as the bytes of a ``tokenizer.model``.

    The text is taken as it is (identity normalisation, all white space kept); line breaks are
    characters like any other, so that ``。`` with a line break after it may become one piece.

    Raises:
        DataError: there is no text, or a story cannot be encoded; names it.
        TokenizerError: the vocabulary is larger than this text allows (says how large it may
            be), or smaller than its characters need.
    """
    config = config or TokenizerConfig()
    drawn = sample_stories(stories, config.sample, config.seed)
    sample = [part for text in drawn for part in _parts(text)]
    if not sample:
        raise DataError("no text to train a tokenizer on")
    try:
        return _train(sample, config)
    except RuntimeError as error:
        if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise TokenizerError(
                f"vocab_size is {config.vocab_size}, but the characters of this text alone need "
                f"{needed[1]}; raise it or lower character_coverage, {config.character_coverage}"
            ) from None
        allowed = re.search(r"Please set it to a value <= (\d+)", str(error))
        if not allowed:
            raise TokenizerError(f"SentencePiece could not train: {error}") from error
        raise TokenizerError(
            f"vocab_size is {config.vocab_size}, but this text allows at most {allowed[1]} pieces"
        ) from None


def _parts(text: str) -> Iterator[str]:
    """Cut a story into what SentencePiece takes."""
    size = _MAX_BYTES // 4  # characters of at most four bytes
    for piece in text.split(_MARK):
        for begin in range(0, len(piece), size):
            yield piece[begin : begin + size]


def _train(sample: list[str], config: TokenizerConfig) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.vocab_size,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        split_digits=config.split_digits,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=_MAX_BYTES,
        input_sentence_size=0,  # the sample is drawn already
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(model: bytes, out: str | Path, max_seq_len: int | None = None) -> None:
    """Write all that anybody may want to read of a tokenizer into the directory ``out``.

    ``tokenizer.model`` (SentencePiece), ``tokenizer.bin`` (llama2.c) and what the
    ``AutoTokenizer`` of transformers looks for.
    """
    from pyllama2c.convert.hf_tokenizer import write_hf_tokenizer
    from pyllama2c.convert.staging import staged_files
    from pyllama2c.sentencepiece_model import SentencePieceModel

    pieces = SentencePieceModel.from_model(model)
    with staged_files(Path(out), force=True) as staging:
        write_hf_tokenizer(pieces, staging, max_seq_len)
        (staging / "tokenizer.bin").write_bytes(pieces.to_llama2c())
