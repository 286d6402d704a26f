"""The command that measures artifacts against the original."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.ablation import ablate_components
from mcpmq.cli.options import (
    PIPELINE_PANEL,
    All,
    Answers,
    Cache,
    Json,
    KvCacheTypes,
    Lora,
    OriginalDevice,
    Revision,
    Samples,
    Seed,
    Threads,
    at_revision,
)
from mcpmq.cli.sample_sets import open_set

commands = typer.Typer()

ShuffleImages = Annotated[bool, typer.Option("--shuffle-images", help="Control: exchange the images of the samples")]


@commands.command(rich_help_panel=PIPELINE_PANEL)
def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that mcpmq wrote")],
    against: Annotated[str, typer.Option("--against", metavar="CHECKPOINT", help="The original")],
    eval_set: Annotated[Path, typer.Option("--eval-set", metavar="SET", help="Evaluation set: images and prompts")],
    revision: Revision = None,
    lora: Lora = None,
    samples: Samples = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of report.json; default: the artifact's parent")
    ] = None,
    engine_baselines: Annotated[
        list[Path] | None,
        typer.Option("--engine-baseline", metavar="ARTIFACT", help="Artifact of recipe `full` in the same format"),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", metavar="FILE", help="Task scores of original and artifacts, as JSON")
    ] = None,
    shuffle_images: ShuffleImages = False,
    engine_preprocessing: Annotated[
        bool, typer.Option("--engine-preprocessing", help="Control: llama.cpp slices and resizes images")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate-components", help="Measure the loss with one component quantized at a time")
    ] = False,
    kv_cache: KvCacheTypes = None,
    threads: Threads = None,
    device: OriginalDevice = None,
    cache: Cache = True,
    answers: Answers = True,
    show_all: All = False,
    json: Json = False,
) -> None:
    """Measure artifacts in their engines against the original, on the same pixels and tokens"""
    against = at_revision(against, revision)
    from mcpmq import ui

    ui.start_progress(f"evaluating {', '.join(map(str, artifacts))}")
    if ablate:
        if len(artifacts) > 1 or shuffle_images or engine_preprocessing or scores or kv_cache:
            raise typer.BadParameter("needs one artifact and no other option", param_hint="--ablate-components")
        ablate_components(artifacts[0], against, lora, eval_set, samples, seed, out, threads, cache, json)
        return
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.evaluate import Settings
    from mcpmq.formats.kv_cache import KvCache
    from mcpmq.report.evaluation import evaluate

    types = KvCache.parse(kv_cache) if kv_cache else None
    options = threads, cache, ui.progress_bars(), shuffle_images, engine_preprocessing
    settings = Settings.from_options(*options, device, ui.print_notice, answers, kv_cache=types)
    opened, baselines = ([Artifact.open(path) for path in paths] for paths in (artifacts, engine_baselines or ()))
    original = Checkpoint.open(against, settings.progress, lora or ())
    evaluation, folder = open_set(eval_set, samples, seed), out or artifacts[0].absolute().parent
    report = evaluate(opened, original, evaluation, settings, out=folder, engine_baselines=baselines, scores=scores)
    ui.print_report(report, as_json=json, all_rows=show_all)
    ui.print_report_paths(folder)
