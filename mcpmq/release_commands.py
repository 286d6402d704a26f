"""The commands that make, check and compare releases."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mcpmq.options import LOOK, STEPS, Json, Out, Threads

commands = typer.Typer()

MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Of the files of one artifact: 4.6GB, 512MiB")
]


@commands.command(rich_help_panel=STEPS)
def package(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that mcpmq exported")],
    out: Out,
    source: Annotated[str, typer.Option("--source", metavar="CHECKPOINT", help="What they were made from")],
    measured: Annotated[Path, typer.Option("--report", metavar="REPORT", help="What `mcpmq evaluate` found")],
    max_size: MaxSize = None,
    part_size: Annotated[
        str | None, typer.Option("--part-size", metavar="SIZE", help="Divide larger files, as app stores ask")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Where the checkpoint does not say it")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="HUB_ID", help="The original, for the model card")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the release; default: its folder's")] = None,
    json: Json = False,
) -> None:
    """Assemble a release: artifacts, report, model card, licence, and the hash of every file"""
    from mcpmq import show
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.package import Wanted, package
    from mcpmq.report import Report

    wanted = Wanted(name, licence, base_model, _size(max_size), _size(part_size))
    opened = [Artifact.open(path) for path in artifacts]
    made = package(opened, Checkpoint.open(source), Report.load(measured), out, wanted)
    show.result(made.table(), made.record.model_dump(mode="json"), as_json=json)


@commands.command(rich_help_panel=LOOK)
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A release, or any artifact")],
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load it in its engines, too")] = True,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check every hash, that files belong together, and that the engines load them"""
    from mcpmq import show
    from mcpmq.verify import verify

    verified = verify(path, threads or os.cpu_count() or 1, load=load, progress=show.progress())
    show.result(verified.table(), verified.facts(), as_json=json)


@commands.command(rich_help_panel=LOOK)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A release or an artifact")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another")],
    json: Json = False,
) -> None:
    """Say what changed from one release to another: files, schemes, sizes, measurements"""
    from mcpmq import show
    from mcpmq.diff import diff

    found = diff(before, after)
    show.result(found.table(), found.facts(), as_json=json)


def _size(text: str | None) -> int | None:
    from mcpmq.sizes import parse_size

    return parse_size(text) if text else None
