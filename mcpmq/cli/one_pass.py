"""The option `--format` of `quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.cli.sample_sets import open_optional_set

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.formats.recipes import FormatsByRecipe


def convert_in_one_pass(
    source: str,
    lora: list[Path] | None,
    out: Path,
    recipes: "FormatsByRecipe",
    calibration: Path | None,
    samples: int | None,
    seed: int,
    *,
    as_json: bool,
) -> None:
    """Write a format without a quantized model, and print the artifact; the set is for a trimmed vocabulary."""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.compression import compress
    from mcpmq.one_pass import convert_in_one_pass
    from mcpmq.plan import make_plan

    [(recipe, [name])] = recipes
    opened = open_optional_set(calibration, samples, seed)
    progress = ui.progress_bars()
    original = Checkpoint.open(source, progress, lora or ())
    with compress(original, recipe, opened, progress) as checkpoint:
        artifact = convert_in_one_pass(make_plan(checkpoint, recipe), name, out, progress)
    ui.print_deviations(artifact)
    ui.print_artifact(artifact, as_json=as_json)
    ui.print_exported_steps(artifact)
