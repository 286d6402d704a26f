"""The command line: one room a kind of command, and the options they share."""

import os
from typing import Annotated

import typer

from mcpmq.cli import inspect, pipeline, release
from mcpmq.errors import McpmqError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for room in (pipeline, inspect, release):
    app.add_typer(room.commands)


def _version(wanted: bool) -> None:
    if wanted:
        from mcpmq import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def mcpmq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More notices, and tracebacks of errors")] = False,
) -> None:
    """Make multimodal language models small, and say what it cost."""
    from mcpmq import ui

    ui.set_verbosity(quiet=quiet, verbose=verbose)


def main() -> None:
    """Run the command line; an error for the user is dressed, a bug keeps its traceback."""
    # Threads that spin while they wait make everything eight times slower beside any other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app(prog_name="mcpmq")
    except McpmqError as error:
        from mcpmq import ui

        ui.error(error)
        raise SystemExit(1) from None
