"""What quantization costs: perplexity on texts that the model has not seen, against float32's.

The bounds are for whole corpora (`pyllama2c eval` measures them in a minute); the slices that are
read here are long enough to tell a broken quantizer from a good one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pyllama2c import Model, _core
from pyllama2c.data.prepare import prepare
from pyllama2c.data.readers import read_stories
from pyllama2c.evaluation import evaluate
from pyllama2c.model import DEFAULT_MODEL

BOUNDS = [
    ({"dtype": "bfloat16"}, 0.002),
    ({"dtype": "int8"}, 0.005),
    ({"dtype": "int4"}, 0.04),
    ({"dtype": "float32", "kv_dtype": "float16"}, 0.0002),
    ({"dtype": "float32", "kv_dtype": "int8"}, 0.005),
]


# It would take minutes for what the others compute to the same bit.
pytestmark = pytest.mark.skipif(_core.isa() == "scalar", reason="slow, and equal to the others")


def perplexity(path: Path, stories: list[str], **options: Any) -> float:
    with Model(path, n_threads=1, **options) as model:  # busy machines are kinder to one
        return evaluate(model, stories).perplexity


class Subject:
    """A model, stories and the perplexity of float32 on them."""

    def __init__(self, path: Path, stories: Iterator[str], **options: Any) -> None:
        self.path, self.stories, self.options = path, list(stories), options
        self.exact = perplexity(path, self.stories, dtype="float32", **options)

    def loss(self, path: Path | None = None, **options: Any) -> float:
        """How much more perplexed the model is, as a share, with these options."""
        return (
            perplexity(path or self.path, self.stories, **self.options | options) / self.exact - 1
        )


@pytest.fixture(scope="module")
def tinystories(shared: Path) -> Subject:
    """stories260K and 10,000 tokens."""
    sample = shared / "corpus" / "tinystories-en-sample.txt"
    if not sample.exists():
        pytest.skip(f"no {sample.name} in the folder 'shared'")
    stories = (story.text for story in islice(read_stories([sample]), 25))
    return Subject(
        shared / "checkpoints" / "stories260K.bin",
        stories,
        tokenizer=shared / "tokenizers" / "tok512.model",
    )


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The default model and 3,600 tokens of what its training has held out."""
    corpus = Path(__file__).parents[1] / "corpus" / "tonghua.jsonl"
    if not corpus.exists():
        pytest.skip(f"no {corpus}")
    folder = tmp_path_factory.mktemp("corpus")
    prepare([corpus], folder, validation=0.05)
    held_out = read_stories([folder / "validation.jsonl"])
    return Subject(DEFAULT_MODEL, (story.text for story in islice(held_out, 60)))


@pytest.mark.parametrize("subject", ["tinystories", "default"])
@pytest.mark.parametrize(("options", "bound"), BOUNDS, ids=str)
def test_quantization_keeps_the_perplexity(
    request: pytest.FixtureRequest, subject: str, options: dict[str, str], bound: float
) -> None:
    assert abs(request.getfixturevalue(subject).loss(**options)) < bound


def test_the_models_are_read_rightly(tinystories: Subject, default: Subject) -> None:
    assert tinystories.exact < 4.7
    assert default.exact < 200


@pytest.mark.parametrize("file", ["stories260K_q80.bin", "stories260K_q80_g4.bin"])
def test_int8_files_keep_the_perplexity(tinystories: Subject, file: str) -> None:
    assert abs(tinystories.loss(tinystories.path.with_name(file))) < 0.005
