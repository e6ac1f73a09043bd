"""The ``pyllama2c`` command: one module per subcommand, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from pyllama2c import __version__
from pyllama2c.errors import Pyllama2cError

# subcommand -> (module, attribute, one line of help shown without importing the module)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("pyllama2c.cli.run", "run", "Tell a story, or chat (llama2.c's flags)."),
    "info": ("pyllama2c.cli.info", "info", "Show what is in a model file and how it would run."),
    "eval": ("pyllama2c.cli.eval", "evaluate", "Measure perplexity and bits per character."),
    "data": ("pyllama2c.cli.data", "data", "Prepare and tokenize a training corpus."),
    "tokenizer": ("pyllama2c.cli.tokenizer", "tokenizer", "Train a tokenizer."),
    "train": ("pyllama2c.cli.train", "train", "Train a model."),
    "convert": ("pyllama2c.cli.convert", "convert", "Convert between model formats."),
}

# Exit statuses, as a shell reports them.
FAILED, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

TRACEBACK_VARIABLE = "PYLLAMA2C_TRACEBACK"


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module when it is needed, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _give_up_stdout()  # the reader (head, less) went away
            ctx.exit(BROKEN_PIPE)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run tiny llama2.c-style Llama models."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(FAILED)


def main(argv: list[str] | None = None) -> None:
    """Entry point: errors are one line on stderr and exit status 2, Ctrl-C is 130."""
    try:
        status = cli.main(args=argv, prog_name="pyllama2c", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        status = _fail("interrupted", INTERRUPTED)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pyllama2c"
        status = _fail(f"error: {error.format_message()} (see '{command} --help')")
    except click.ClickException as error:
        status = _fail(f"error: {error.format_message()}")
    except (Pyllama2cError, OSError, MemoryError) as error:
        status = _fail(f"error: {str(error) or type(error).__name__}")
    except Exception as error:  # a bug: still no traceback, unless somebody wants to report it
        hint = f"set {TRACEBACK_VARIABLE}=1 to see where"
        status = _fail(f"error: unexpected {type(error).__name__}: {error} ({hint})")
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # a full disk, say; what could not be written is still in the buffer
        _give_up_stdout()
        status = status or _fail(f"error: {error}")
    sys.exit(status if isinstance(status, int) else 0)


def _give_up_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int = FAILED) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    click.echo(" ".join(message.splitlines()), err=True)
    return status
