"""What quantization costs: perplexity on a sample of TinyStories, against that of float32.

The bounds are for the whole sample (`pyllama2c eval` measures it in a minute); the slice that is
read here is long enough to tell a broken quantizer from a good one.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from pyllama2c import Model, _core
from pyllama2c.data.readers import read_stories
from pyllama2c.evaluation import evaluate

STORIES = 40  # 16,000 tokens


def perplexity(shared: Path, file: str = "stories260K.bin", **options: object) -> float:
    if _core.isa() == "scalar":
        pytest.skip("minutes of plain loops for what the others compute to the same bit")
    sample = shared / "corpus" / "tinystories-en-sample.txt"
    if not sample.exists():
        pytest.skip(f"no {sample.name} in the folder 'shared'")
    stories = (story.text for story in islice(read_stories([sample]), STORIES))
    tokenizer = shared / "tokenizers" / "tok512.model"
    with Model(shared / "checkpoints" / file, tokenizer=tokenizer, **options) as model:  # type: ignore[arg-type]
        return evaluate(model, stories).perplexity


@pytest.fixture(scope="module")
def exact(shared: Path) -> float:
    """The perplexity of float32."""
    return perplexity(shared)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"dtype": "bfloat16"}, 0.002),
        ({"dtype": "int8"}, 0.005),
        ({"dtype": "int4"}, 0.04),
        ({"kv_dtype": "float16"}, 0.0002),
        ({"kv_dtype": "int8"}, 0.005),
    ],
    ids=str,
)
def test_quantization_keeps_the_perplexity(
    shared: Path, exact: float, options: dict[str, str], bound: float
) -> None:
    assert exact < 4.7  # the model itself is read rightly
    loss = perplexity(shared, **options) / exact - 1
    assert abs(loss) < bound


@pytest.mark.parametrize("file", ["stories260K_q80.bin", "stories260K_q80_g4.bin"])
def test_int8_files_keep_the_perplexity(shared: Path, exact: float, file: str) -> None:
    assert abs(perplexity(shared, file) / exact - 1) < 0.005
