"""``pyllama2c convert``: between model formats, the tokenizer included."""

from __future__ import annotations

from pathlib import Path

import click

from pyllama2c.cli.common import PATH


@click.command()
@click.argument("source", type=PATH)
@click.argument("destination", type=PATH)
@click.option(
    "--to",
    type=click.Choice(["v0", "v1", "v2", "hf", "packed"]),
    help="Format to write: llama2.c's v0 (for run), v1 (float32) or v2 (int8, for runq); a Hugging "
    "Face directory, which is the default where DESTINATION has no suffix; or one packed file for "
    "pyllama2c, which loads at once, the default for int8, int4 and names in .safetensors.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "int8", "int4"]),
    help="How to store the weights: Hugging Face has no int8 and int4, packed files no float16.  "
    "[default: as they are]",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Largest group of weights to share a scale in v2; made smaller to divide every row.",
)
@click.option(
    "--tokenizer",
    type=PATH,
    help="The model's tokenizer (.model, .bin or tokenizer.json).  [default: beside SOURCE]",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def convert(
    source: Path,
    destination: Path,
    *,
    to: str | None,
    dtype: str | None,
    group_size: int,
    tokenizer: Path | None,
    force: bool,
) -> None:
    """Convert the model SOURCE into DESTINATION, with its tokenizer.

    SOURCE is a llama2.c file (v0, v1, v2, or the ckpt.pt of its training), a Hugging Face
    directory, a directory of "pyllama2c train", or Meta's params.json with consolidated.*.pth.
    """
    from pyllama2c.convert import convert as run

    done = run(
        source,
        destination,
        to=to,
        dtype=dtype,
        group_size=group_size,
        tokenizer=tokenizer,
        force=force,
    )
    model = done.source
    n_params = model.config.n_params / 1e6
    click.echo(f"read  {model.path}: {model.kind}, {model.dtype}, {n_params:.2f} M parameters")
    click.echo(f"wrote {done.path}: {done.target}, {done.dtype} ({', '.join(done.files)})")
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
