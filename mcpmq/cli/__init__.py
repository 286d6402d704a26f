"""The command line: one module for every kind of command, and their shared options."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mcpmq.cli import dataset, evaluate, inspect, layers, pipeline, planning, release, run, search, serve, sweep
from mcpmq.cli.options import PIPELINE_PANEL
from mcpmq.cli.standard_output import discard_output, null_output
from mcpmq.cli.system_errors import system_error
from mcpmq.errors import McpmqError, McpmqWarning

_show_library_warning = warnings.showwarning
VERBOSITY_OPTIONS = ("-q", "--quiet", "-v", "--verbose")


class _Group(TyperGroup):
    """The command line; options of the verbosity are accepted before and after the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in VERBOSITY_OPTIONS]
        kept = [word for word in args[:end] if word not in VERBOSITY_OPTIONS]
        return super().parse_args(ctx, [*moved, *kept, *args[end:]])


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (pipeline, planning, layers, evaluate, inspect, search, release, run, serve, sweep):
    app.add_typer(module.commands)
app.add_typer(dataset.commands, name="dataset", rich_help_panel=PIPELINE_PANEL)


def _print_version(requested: bool) -> None:
    if requested:
        from mcpmq import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def mcpmq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors")] = False,
) -> None:
    """Quantize multimodal language models and measure the accuracy loss."""
    from mcpmq import ui

    ui.set_verbosity(quiet=quiet, verbose=verbose)


def main() -> None:
    """Run the command line; print errors of the user and of the system as message and hint."""
    # OpenMP threads that spin while they wait make the work eight times slower beside another busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = null_output()
    warnings.showwarning = _show_warning
    try:
        try:
            app(prog_name="mcpmq")
        finally:
            _stop_progress()
            sys.stdout.flush()  # here, because the interpreter would print a traceback
    except (McpmqError, OSError, MemoryError) as error:
        discard_output()
        if isinstance(error, BrokenPipeError):  # the reader has the lines that it needs
            raise SystemExit(1) from None
        from mcpmq import ui

        ui.print_error(error if isinstance(error, McpmqError) else system_error(error))
        raise SystemExit(1) from None


def _show_warning(message: Warning | str, category: type[Warning], *details: Any, **more: Any) -> None:
    """Print a warning of mcpmq as a notice, and those of libraries as Python does."""
    if issubclass(category, McpmqWarning):
        from mcpmq import ui

        ui.print_notice(str(message))
    else:
        _show_library_warning(message, category, *details, **more)


def _stop_progress() -> None:
    if module := sys.modules.get("mcpmq.ui"):  # not imported for `--help`
        module.stop_progress()
