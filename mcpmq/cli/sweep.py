"""The command that runs a sweep, and the command of its processes."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import PIPELINE_PANEL, Devices, Json
from mcpmq.cli.release import parse_optional_size
from mcpmq.cli.standard_output import keep_exit_code

commands = typer.Typer()


@commands.command(rich_help_panel=PIPELINE_PANEL)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="Checkpoints, recipes, formats and sample sets")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="Folder to write; default: the path of the file without .toml"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Processes at a time")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of a process; default: cores / jobs")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Memory of all processes together, e.g. 8GB; default: 90 % of the available memory",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, help="Number of runs of a failed step after the first")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT, auto, or local for one here"),
    ] = None,
    store: Annotated[
        str,
        typer.Option("--store", metavar="shared|returned", help="OUT on Ray: shared by all nodes, or reports returned"),
    ] = "shared",
    device: Devices = None,
    json: Json = False,
) -> None:
    """Convert and measure every combination of checkpoints, recipes, formats and sets; resumes an interrupted run"""
    from mcpmq import ui

    progress = ui.start_progress(f"planning {file}")
    from mcpmq.sweep import SweepOptions, sweep
    from mcpmq.sweep.ray_pool import Store

    folder = out or file.with_suffix("")
    if store not in ("shared", "returned"):
        raise typer.BadParameter(f"`{store}` is neither shared nor returned", param_hint="--store")
    kept: Store = "shared" if store == "shared" else "returned"
    options = SweepOptions(jobs, threads, parse_optional_size(memory_limit), retries, device, ray, kept)
    with ui.sweep_view() as show:
        result = sweep(file, folder, options, progress, show, ui.print_notice)
    with keep_exit_code():
        ui.print_sweep(result, as_json=json)
        ui.print_sweep_paths(folder)
    raise typer.Exit(result.exit_code)


@commands.command(name="sweep-step", hidden=True)
def sweep_step(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a request")]) -> None:
    """Carry out one step of a sweep"""
    from mcpmq import ui

    ui.start_progress(folder.name)
    from mcpmq.evaluate import Settings
    from mcpmq.sweep.step import run_step

    run_step(
        folder,
        Settings.from_options(progress=ui.progress_bars(), notify=ui.print_notice, generate_answers=False),
    )
