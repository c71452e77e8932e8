"""The ``equibit`` command: finds subcommands without importing them, and turns errors into one line.

A subcommand is a module of this package that exposes ``app``, a ``typer.Typer``. It is imported
only when called, so that ``equibit --help`` and a mistyped option answer at once and without torch.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import equibit
from equibit.structures.errors import EquibitError

DEBUG_VARIABLE = "EQUIBIT_DEBUG"

# Options that Typer gives every application; here they belong to `equibit` itself.
_COMPLETION = {"install_completion", "show_completion"}

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand lives and what ``equibit --help`` says about it."""

    module: str
    summary: str


SUBCOMMANDS = {
    "demo": Subcommand(
        "equibit.cli.demo", "Quantise the shipped ethanol network, judge it and write a report."
    ),
    "data": Subcommand(
        "equibit.cli.data", "List, fetch, inspect, convert and generate labelled structures."
    ),
    "train": Subcommand("equibit.cli.train", "Train an FP32 network from a YAML configuration."),
    "quantize": Subcommand(
        "equibit.cli.quantize", "Turn an FP32 network into a low-bit one: calibrate, then QAT."
    ),
    "evaluate": Subcommand(
        "equibit.cli.evaluate", "Measure accuracy, symmetry, size and speed; write a report."
    ),
    "predict": Subcommand(
        "equibit.cli.predict", "Energies, forces and stresses of the structures in a file."
    ),
    "md": Subcommand(
        "equibit.cli.md", "Molecular dynamics: compiled steps, checkpoints, a picture."
    ),
    "models": Subcommand(
        "equibit.cli.models", "List, show and copy the shipped models; write model cards."
    ),
    "inspect": Subcommand(
        "equibit.cli.inspect", "Say what a model file holds: layers, bits, bytes, its card."
    ),
    "export": Subcommand(
        "equibit.cli.export", "Write one checked model file, for Python and for C."
    ),
    "bench": Subcommand(
        "equibit.cli.bench", "Time the engine beside PyTorch and its peers, in turns."
    ),
    "reproduce": Subcommand(
        "equibit.cli.reproduce", "Make the papers' tables and figures again, stage by stage."
    ),
    "config": Subcommand(
        "equibit.cli.config", "Write an example configuration or its JSON schema."
    ),
}

# Top-level module of an optional dependency → the extra that installs it.
EXTRAS = {
    "torch": "train",
    "e3nn": "train",
    "lightning": "train",
    "tensorboard": "train",
    "matplotlib": "report",
    "jinja2": "report",
    "pyscf": "data",
    "tblite": "data",
}


class _InterruptedError(Exception):
    """Ctrl-C inside a subcommand, before Typer turns it into a bare status."""


class LazyGroup(typer.core.TyperGroup):
    """A group that imports a subcommand's module only to run it or to print its own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, item in SUBCOMMANDS.items() if _exists(item.module)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows name and summary; enough for help and completion."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return typer.core.TyperCommand(
            name=cmd_name, help=SUBCOMMANDS[cmd_name].summary, rich_markup_mode="rich"
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or name is None:
            return name, command, rest
        module = importlib.import_module(SUBCOMMANDS[name].module)
        loaded = typer.main.get_command(module.app)
        loaded.name = name
        loaded.params = [item for item in loaded.params if item.name not in _COMPLETION]
        return name, loaded, rest

    def invoke(self, ctx: Any) -> None:
        """Run the subcommand; what it returns is for Python callers and no exit status."""
        try:
            super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


HELP = (
    "Low-bit equivariant force fields that keep their symmetry.\n\n"
    "MODEL is a file or the name of a shipped model (ethanol-fp32); DATA is a file or the name of a "
    "data set (ethanol-pbe, rmd17/ethanol). EQUIBIT_DEBUG=1 shows tracebacks."
)

app = typer.Typer(
    cls=LazyGroup,
    name="equibit",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"equibit {equibit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 done; 1 an error that a message explains; 2 a mistake in the command itself; 130 Ctrl-C.

    Args:
        arguments: what follows ``equibit``; the process's own arguments when None.
    """
    try:
        command = typer.main.get_command(app)
        result = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="equibit",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, _InterruptedError, typer.Abort):
        _complain(
            "interrupted",
            "files already written are complete; repeat the command to go on "
            "from the last checkpoint, where it keeps one",
        )
        return EXIT_INTERRUPTED
    except Exception as error:
        if _shows_itself(error):
            error.show()  # type: ignore[attr-defined]
            return int(error.exit_code)  # type: ignore[attr-defined]
        message = explain(error)
        if message is None or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
            raise
        _complain("error", message)
        return EXIT_ERROR
    return result if isinstance(result, int) else 0


def explain(error: Exception) -> str | None:
    """One line that a user can act on, or None for what can only be a bug."""
    if isinstance(error, EquibitError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            return f'this needs {package}: pip install "equibit[{EXTRAS[package]}]"'
        return None
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        advice = "; free some space and repeat" if error.errno == errno.ENOSPC else ""
        return f"{where}{reason}{advice}"
    return None


def _shows_itself(error: Exception) -> bool:
    """Whether Typer made this error for a mistake in the command and can print it with usage."""
    return hasattr(error, "show") and hasattr(error, "exit_code")


def _complain(label: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        Text.assemble((f"{label}: ", "bold red"), (line, "red"))
    )


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main())
