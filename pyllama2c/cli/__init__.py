"""The ``pyllama2c`` command: one module per subcommand, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from pyllama2c.errors import Pyllama2cError

# subcommand -> (module, attribute, one line of help shown without importing the module)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("pyllama2c.cli.run", "run", "Tell a story, or chat (llama2.c's flags)."),
    "info": ("pyllama2c.cli.info", "info", "Show what is in a model file and how it would run."),
    "data": ("pyllama2c.cli.data", "data", "Prepare and tokenize a training corpus."),
    "tokenizer": ("pyllama2c.cli.tokenizer", "tokenizer", "Train a tokenizer."),
    "train": ("pyllama2c.cli.train", "train", "Train a model."),
    "convert": ("pyllama2c.cli.convert", "convert", "Convert between model formats."),
}


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module when it is needed, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyllama2c")
def cli() -> None:
    """Run tiny llama2.c-style Llama models."""


def main(argv: list[str] | None = None) -> Any:
    """Entry point: errors are one line on stderr and exit status 2, Ctrl-C is 130."""
    try:
        status = cli.main(args=argv, standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        status = 130
    except click.ClickException as error:
        error.show()
        status = 2
    except BrokenPipeError:
        # The reader (head, less) went away: point stdout at nothing so that the
        # interpreter's own flush at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (Pyllama2cError, OSError, MemoryError) as error:
        click.echo(f"error: {error}", err=True)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)
