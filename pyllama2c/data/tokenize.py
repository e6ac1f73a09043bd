"""Turn stories into a token file, in several processes, resumable.

The stories are cut into shards. A shard is encoded in one go by one process, written to a file
named after the hash of its stories, and kept until all are done; whoever is interrupted and
starts again finds what he has already.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyllama2c import _core
from pyllama2c.data.files import atomic_write, made_directory
from pyllama2c.data.readers import Story
from pyllama2c.data.tokens import TokenInfo, as_tokens, sha256, write_tokens
from pyllama2c.errors import ArgumentError, DataError, TokenizerError
from pyllama2c.tokenizer import Tokenizer


class _Shard(NamedTuple):
    path: Path
    stories: list[Story]


def tokenize(
    stories: Iterable[Story],
    tokenizer: str | Path,
    out: str | Path,
    *,
    jobs: int | None = None,
    shard_stories: int = 10_000,
) -> TokenInfo:
    """Encode each story, BOS before it, into the token file ``out`` (``.npy``, see `tokens`).

    Args:
        stories: what to encode; held in memory a few shards at a time.
        tokenizer: a SentencePiece ``tokenizer.model``.
        out: the token file; its note goes beside it.
        jobs: number of processes; by default one for each CPU that this process may use.
        shard_stories: how many stories are encoded and saved together.

    Raises:
        ArgumentError: ``out`` does not end in ``.npy``, or a file is where its directory should be;
            ``jobs`` or ``shard_stories`` below 1.
        TokenizerError: the tokenizer cannot be read or has no BOS.
        DataError: a story could not be encoded; names it. What is done is kept.
    """
    out, tokenizer = Path(out), Path(tokenizer)
    jobs = _core.available_cpus() if jobs is None else jobs
    if jobs < 1 or shard_stories < 1:
        raise ArgumentError(
            f"jobs is {jobs} and shard_stories {shard_stories}, expected at least 1 of each"
        )
    if out.suffix != ".npy":
        raise ArgumentError(f"out is {str(out)!r}, expected a name that ends in .npy")
    encoder = _Encoder(tokenizer)
    digest = sha256(tokenizer)
    work = out.with_name(f".{out.stem}.{digest[:16]}.shards")
    shards: list[Path] = []
    n_stories = n_characters = 0

    def todo() -> Iterator[_Shard]:
        nonlocal n_stories, n_characters
        for shard in _cut(stories, shard_stories, work):
            shards.append(shard.path)
            n_stories += len(shard.stories)
            n_characters += sum(len(story.text) for story in shard.stories)
            if not shard.path.exists():
                yield shard

    with made_directory(work):  # what is done stays in it
        if jobs == 1:
            for shard in todo():
                encoder.write(shard)
        else:
            _encode_in_parallel(todo(), tokenizer, jobs)
        if not shards:
            raise DataError("no story to tokenize")
        info = TokenInfo(
            vocab_size=encoder.vocab_size,
            bos_id=encoder.bos_id,
            tokens=sum(int(np.load(path, mmap_mode="r").size) for path in shards),
            stories=n_stories,
            characters=n_characters,
            tokenizer_sha256=digest,
        )
        write_tokens(out, shards, info)
        shutil.rmtree(work)
    return info


def _cut(stories: Iterable[Story], size: int, work: Path) -> Iterator[_Shard]:
    """Cut into shards, each with a file name that no other content has."""
    iterator = iter(stories)
    number = 0
    while chunk := list(islice(iterator, size)):
        content = hashlib.blake2b(digest_size=16)
        for story in chunk:
            content.update(story.text.encode("utf-8", "surrogatepass") + b"\0")
        yield _Shard(work / f"{number:06}-{content.hexdigest()}.npy", chunk)
        number += 1


class _Encoder:
    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = Tokenizer.load(tokenizer)
        if self.tokenizer.kind != "SentencePiece":
            raise TokenizerError(
                f"{tokenizer}: a {self.tokenizer.kind} tokenizer, expected the "
                "tokenizer.model that training takes"
            )
        self.vocab_size = self.tokenizer.vocab_size
        self.bos_id = self.tokenizer.bos_id
        if self.bos_id < 0:
            raise TokenizerError(f"{tokenizer}: has no BOS piece, which separates the stories")

    def write(self, shard: _Shard) -> None:
        """Encode a shard and save it; complete or not at all."""
        ids: list[int] = []
        for story in shard.stories:
            try:
                ids.extend(self.tokenizer.encode(story.text))
            except Exception as error:
                raise DataError(
                    f"{story.where}: this story could not be encoded ({error}): {story.text[:40]!r}"
                ) from error
        with atomic_write(shard.path, "wb") as file:
            np.save(file, as_tokens(ids, self.vocab_size))


_encoder: _Encoder


def _start_worker(tokenizer: Path) -> None:
    global _encoder  # noqa: PLW0603 - one per worker process, loaded once
    # Ctrl-C reaches all processes of a terminal; it is the first that ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = _Encoder(tokenizer)


def _write_in_worker(shard: _Shard) -> None:
    _encoder.write(shard)


def _encode_in_parallel(shards: Iterator[_Shard], tokenizer: Path, jobs: int) -> None:
    """Encode in ``jobs`` processes; the first failure ends it and comes back as it was raised."""
    context = multiprocessing.get_context("spawn")  # fork would copy the caller's threads' locks
    pending: deque[tuple[_Shard, Future[None]]] = deque()
    with ProcessPoolExecutor(jobs, context, _start_worker, (tokenizer,)) as pool:
        try:
            for shard in shards:
                pending.append((shard, pool.submit(_write_in_worker, shard)))
                if len(pending) >= 2 * jobs:
                    _finish(*pending.popleft())
            while pending:
                _finish(*pending.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finish(shard: _Shard, future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        first, last = shard.stories[0].where, shard.stories[-1].where
        raise DataError(
            f"a worker process died while stories {first} to {last} were being encoded"
        ) from error
