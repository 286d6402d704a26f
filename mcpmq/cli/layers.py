"""The command `layers`: measure layers, and write a recipe that removes some of them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import (
    DEFAULT_SEARCH_RECIPE,
    PIPELINE_PANEL,
    Calibration,
    Device,
    Json,
    Lora,
    Revision,
    Samples,
    Seed,
    Source,
    Threads,
    at_revision,
    complete_recipe,
)
from mcpmq.cli.sample_sets import open_set

commands = typer.Typer()


@commands.command(rich_help_panel=PIPELINE_PANEL)
def layers(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Recipe file to write")],
    calibration: Calibration,
    remove: Annotated[int, typer.Option("--remove", metavar="N", min=1, help="Number of layers to remove")],
    component: Annotated[
        str, typer.Option("--component", metavar="NAME", help="language or vision: the component that loses layers")
    ] = "language",
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", metavar="NAME|FILE", help="Recipe to extend", autocompletion=complete_recipe),
    ] = DEFAULT_SEARCH_RECIPE,
    revision: Revision = None,
    lora: Lora = None,
    samples: Samples = None,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure the influence of layers and the loss without them, and write a recipe that removes the least important"""
    from mcpmq import ui

    source = at_revision(source, revision)
    ui.start_progress(f"measuring the layers of {source}")
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.mixed_precision.layer_recipe import write_layer_recipe

    opened, progress = open_set(calibration, samples, seed), ui.progress_bars()
    original, cores = Checkpoint.open(source, progress, lora or ()), threads or os.cpu_count() or 1
    found = write_layer_recipe(original, recipe, out, opened, (component, remove), cores, progress, device)
    ui.print_table(found.to_table(), found.to_dict(), as_json=json)
