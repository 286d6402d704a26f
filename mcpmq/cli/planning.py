"""The command `plan`: schemes, sizes, memory and time, from headers."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mcpmq.cli.options import (
    PIPELINE_PANEL,
    Bits,
    Context,
    DropSpeechOutput,
    ForecastFormats,
    GgufAudioProjector,
    Json,
    Lora,
    MaxPixels,
    MaxSlices,
    OnnxSharedEmbedding,
    PlanCalibration,
    RecipeName,
    Revision,
    Source,
    TrimVocabulary,
    at_revision,
)
from mcpmq.cli.recipe_options import load_recipes, parse_compression
from mcpmq.cli.release import parse_format
from mcpmq.cli.sample_sets import open_optional_set

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.dataset import SampleSet
    from mcpmq.estimate.calibration_time import CalibrationTokens
    from mcpmq.formats.recipes import FormatsByRecipe
    from mcpmq.plan import Plan
    from mcpmq.system.progress import Progress


commands = typer.Typer()


@commands.command(rich_help_panel=PIPELINE_PANEL)
def plan(
    source: Source,
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
    calibration: PlanCalibration = None,
    formats: ForecastFormats = None,
    context: Context = 4096,
    json: Json = False,
) -> None:
    """Show the scheme and size of every weight, and forecast memory and time; reads headers only"""
    source = at_revision(source, revision)
    from mcpmq.system.hub import HUB_ID

    if HUB_ID.fullmatch(source) and not Path(source).exists():  # the checkpoint is downloaded
        from mcpmq import ui

        ui.start_progress(f"planning {source}")
    names = [parse_format(name) for name in formats or ()]
    settings = drop_speech_output, gguf_audio, onnx_shared_embedding
    compression = parse_compression(trim_vocabulary, max_slices, max_pixels, *settings)
    recipes = load_recipes(recipe, bits, names, compression)
    _print_plans(source, lora, recipes, calibration, context, as_json=json)


def _print_plans(
    source: str,
    lora: list[Path] | None,
    recipes: "FormatsByRecipe",
    calibration: Path | None,
    context: int,
    *,
    as_json: bool,
) -> None:
    """Plan every recipe and print the plans with their forecasts; structured compression is that of each recipe."""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.compression import compress
    from mcpmq.estimate.forecast import forecast
    from mcpmq.plan import make_plan

    progress, samples = ui.progress_bars(), open_optional_set(calibration)
    checkpoint = Checkpoint.open(source, progress, lora or ())
    with ExitStack() as stack:
        views = [stack.enter_context(compress(checkpoint, one, samples, progress)) for one, _ in recipes]
        plans = [(make_plan(view, one), names) for view, (one, names) in zip(views, recipes, strict=True)]
        counted = [_count_tokens(made, samples, progress) for made, _ in plans]
        forecasts = [forecast(made, names, context, one) for (made, names), one in zip(plans, counted, strict=True)]
        ui.print_plans([(one.plan, one) for one in forecasts], as_json=as_json)


def _count_tokens(plan: "Plan", samples: "SampleSet | None", progress: "Progress") -> "CalibrationTokens | None":
    """Count the inputs of a calibration; None without a set, or if the plan needs none."""
    from mcpmq.estimate.calibration_time import CalibrationTokens
    from mcpmq.families.encoding import encode_sample

    if samples is None or not plan.recipe.needs_calibration:
        return None
    checkpoint = plan.checkpoint
    processor, vision = checkpoint.family.open_processor(checkpoint.path), checkpoint.architecture.vision
    inputs = (encode_sample(processor, sample) for sample in progress(samples.samples, "counting tokens"))
    return CalibrationTokens.of_samples(inputs, vision.patch_size if vision else 0)
