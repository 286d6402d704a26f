"""Commands of the pipeline: each parses its options, calls one function, and prints the result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.cluster_options import make_cluster
from mcpmq.cli.one_pass import convert_in_one_pass
from mcpmq.cli.options import (
    DEFAULT_SEARCH_RECIPE,
    FORMAT_NAMES,
    PIPELINE_PANEL,
    AddedImatrix,
    All,
    Answers,
    Bits,
    Cache,
    Calibration,
    Context,
    Device,
    Devices,
    DropSpeechOutput,
    EvalSet,
    Formats,
    GgufAudioProjector,
    Json,
    KeepQuantized,
    Lora,
    MaxMemory,
    MaxPixels,
    MaxSize,
    MaxSlices,
    MemoryLimit,
    Mmproj,
    Npu,
    OnePassFormat,
    OnnxSharedEmbedding,
    OptionalCalibration,
    Out,
    Ray,
    RecipeName,
    Revision,
    Samples,
    Seed,
    Source,
    Threads,
    TrimVocabulary,
    Workers,
    WorkerThreads,
    at_revision,
    checkpoint_words,
    complete_format,
    set_words,
)
from mcpmq.cli.recipe_options import load_recipes, parse_compression, print_if_uncalibrated
from mcpmq.cli.release import make_budget, parse_format, parse_optional_size
from mcpmq.cli.sample_sets import open_optional_set, open_set

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.evaluate import Settings
    from mcpmq.report import Report

commands = typer.Typer()


@commands.command()
def convert(
    source: Source,
    out: Out,
    formats: Formats,
    revision: Revision = None,
    lora: Lora = None,
    calibration: OptionalCalibration = None,
    recipe: RecipeName = None,
    bits: Bits = None,
    trim_vocabulary: TrimVocabulary = None,
    max_slices: MaxSlices = None,
    max_pixels: MaxPixels = None,
    drop_speech_output: DropSpeechOutput = False,
    gguf_audio: GgufAudioProjector = None,
    onnx_shared_embedding: OnnxSharedEmbedding = False,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    context: Context = 4096,
    eval_set: EvalSet = None,
    samples: Samples = None,
    seed: Seed = 0,
    device: Devices = None,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    cache: Cache = True,
    answers: Answers = True,
    keep_quantized: KeepQuantized = False,
    show_all: All = False,
    json: Json = False,
) -> None:
    """Quantize, export and evaluate a checkpoint; resumes an interrupted run"""
    _start(f"converting {(source := at_revision(source, revision))}")
    budget, names = make_budget(max_size, max_memory, context), [parse_format(name) for name in formats]
    recipe = recipe or (DEFAULT_SEARCH_RECIPE if budget and not bits else None)
    others = drop_speech_output, gguf_audio, onnx_shared_embedding
    compression = parse_compression(trim_vocabulary, max_slices, max_pixels, *others)
    from mcpmq import ui
    from mcpmq.convert import convert
    from mcpmq.dataset import ReadOptions

    print_if_uncalibrated([loaded for loaded, _ in load_recipes(recipe, bits, names) if calibration])
    report = convert(
        source,
        out,
        formats=names,
        adapters=lora or (),
        calibration=calibration,
        recipe=recipe,
        bits=bits,
        eval_set=eval_set,
        budget=budget,
        settings=_settings(threads, cache, device, answers, memory_limit),
        keep_quantized=keep_quantized,
        read_options=ReadOptions(samples, seed, skip_invalid=True),
        compression=compression,
    )
    _print_deviations(out)
    ui.print_report(report, as_json=json, all_rows=show_all)
    _print_steps(report, out, checkpoint_words(source, lora), set_words(calibration, samples, seed))


@commands.command(rich_help_panel=PIPELINE_PANEL)
def quantize(
    source: Source,
    out: Out,
    revision: Revision = None,
    lora: Lora = None,
    recipe: RecipeName = None,
    bits: Bits = None,
    trim_vocabulary: TrimVocabulary = None,
    max_slices: MaxSlices = None,
    max_pixels: MaxPixels = None,
    drop_speech_output: DropSpeechOutput = False,
    gguf_audio: GgufAudioProjector = None,
    onnx_shared_embedding: OnnxSharedEmbedding = False,
    calibration: OptionalCalibration = None,
    samples: Samples = None,
    seed: Seed = 0,
    device: Devices = None,
    memory_limit: MemoryLimit = None,
    format: OnePassFormat = None,
    ray: Ray = None,
    workers: Workers = None,
    threads: WorkerThreads = 1,
    json: Json = False,
) -> None:
    """Quantize every weight, block by block; the result can be exported to several formats"""
    source = at_revision(source, revision)
    _start(f"quantizing {source}")
    settings = drop_speech_output, gguf_audio, onnx_shared_embedding
    compression = parse_compression(trim_vocabulary, max_slices, max_pixels, *settings)
    recipes = load_recipes(recipe, bits, [parse_format(format)] if format else (), compression)
    if format:
        convert_in_one_pass(source, lora, out, recipes, calibration, samples, seed, as_json=json)
        return
    [(loaded, _)] = recipes
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.compression import compress
    from mcpmq.evaluate import calibration_warnings
    from mcpmq.plan import make_plan
    from mcpmq.quantize import quantize

    opened = open_optional_set(calibration, samples, seed)
    if opened:
        print_if_uncalibrated([loaded])
    for text in calibration_warnings(opened) if opened and loaded.needs_calibration else ():
        ui.print_notice(text)
    progress, limit = ui.progress_bars(), parse_optional_size(memory_limit)
    original = Checkpoint.open(source, progress, lora or ())
    with compress(original, loaded, opened, progress) as checkpoint:
        options = progress, device, ui.print_notice, limit, make_cluster(ray, workers, threads, device)
        quantized = quantize(make_plan(checkpoint, loaded), out, opened, *options)
    ui.print_deviations(quantized.artifact)
    ui.print_artifact(quantized.artifact, as_json=json)
    ui.print_quantized_steps(quantized.artifact)


@commands.command(rich_help_panel=PIPELINE_PANEL)
def export(
    quantized: Annotated[Path, typer.Argument(metavar="QUANTIZED", help="Folder that `mcpmq quantize` wrote")],
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", metavar="FORMAT", help=f"Format: {FORMAT_NAMES}", autocompletion=complete_format
        ),
    ],
    npu: Npu = None,
    samples: Samples = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Export a quantized model to a format"""
    _start(f"exporting {quantized}")
    name = parse_format(format)
    from mcpmq import ui
    from mcpmq.export import export
    from mcpmq.quantized_model import QuantizedModel

    images = open_optional_set(npu, samples, seed)
    artifact = export(QuantizedModel.open(quantized), name, out, ui.progress_bars(), images)
    ui.print_artifact(artifact, as_json=json)
    ui.print_exported_steps(artifact)


@commands.command(rich_help_panel=PIPELINE_PANEL)
def imatrix(
    source: Source,
    out: Out,
    calibration: Calibration,
    revision: Revision = None,
    lora: Lora = None,
    add: AddedImatrix = None,
    mmproj: Mmproj = None,
    samples: Samples = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write the imatrix of language model and encoders for llama-quantize --imatrix"""
    source = at_revision(source, revision)
    _start(f"collecting the imatrix of {source}")
    from mcpmq import ui
    from mcpmq.calibrate.imatrix import write_imatrix
    from mcpmq.checkpoint import Checkpoint

    opened, progress = open_set(calibration, samples, seed), ui.progress_bars()
    original = Checkpoint.open(source, progress, lora or ())
    artifact = write_imatrix(original, opened, out, add or [], mmproj, progress, device)
    for note in artifact.manifest.notes:
        ui.print_notice(note)
    ui.print_artifact(artifact, as_json=json)
    ui.print_imatrix_steps(artifact)


def _settings(
    threads: int | None, cache: bool, device: str | None, answers: bool, memory_limit: str | None
) -> "Settings":
    from mcpmq import ui
    from mcpmq.evaluate import Settings

    controls, limit = (False, False), parse_optional_size(memory_limit)
    return Settings.from_options(threads, cache, ui.progress_bars(), *controls, device, ui.print_notice, answers, limit)


def _print_deviations(out: Path) -> None:
    """Print the deviations from the recipes of a conversion."""
    from mcpmq import ui
    from mcpmq.conversion_folder import quantized_artifacts

    for artifact in quantized_artifacts(out):
        ui.print_deviations(artifact)


def _print_steps(report: "Report", out: Path, source: list[str], calibration: list[str]) -> None:
    """Print the outputs of a conversion and the next commands; mixtures of experts have no `search`."""
    from mcpmq import ui
    from mcpmq.artifact import Artifact
    from mcpmq.families.blocks import has_experts

    manifests = [Artifact.open(out / result.name).manifest for result in report.artifacts]
    is_mixture = any(has_experts(record.name for record in one.weights) for one in manifests)
    ui.print_conversion_steps(report, out, source, calibration, can_search=not is_mixture)


def _start(label: str) -> None:
    """Show the begin of a command within a second, before its libraries are imported."""
    from mcpmq import ui

    ui.start_progress(label)
