"""Commands of sample sets."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import Json, Out, Samples, Seed

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def dataset() -> None:
    """Convert sample sets"""


@commands.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SET", help="Sample set in any accepted format")],
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder of the image files; default: the folder of the set"),
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out invalid records, and name them")
    ] = False,
    ignored: Annotated[
        list[str] | None,
        typer.Option("--ignore-key", metavar="KEY", help="Key of records without content; may be repeated"),
    ] = None,
    json: Json = False,
) -> None:
    """Write a sample set as a folder with a manifest and its images"""
    from mcpmq import ui
    from mcpmq.dataset import ReadOptions, SampleSet
    from mcpmq.dataset.writing import write_set

    opened = SampleSet.open(source, ReadOptions(samples, seed, skip_invalid, images, tuple(ignored or ())))
    for reason in opened.invalid:
        ui.print_notice(f"left out: {reason}")
    ui.print_sample_set(write_set(opened, out), as_json=json)
