"""The option `--format` of `quantize`."""

from pathlib import Path

from mcpmq.cli.recipe_options import load_recipes
from mcpmq.cli.release import parse_format


def convert_in_one_pass(
    source: str,
    lora: list[Path] | None,
    out: Path,
    recipe: str | None,
    bits: int | None,
    format: str,
    json: bool,
) -> None:
    """Write a format without a quantized model, and print the artifact."""
    name = parse_format(format)
    [(loaded, _)] = load_recipes(recipe, bits, [name])
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.one_pass import convert_in_one_pass
    from mcpmq.plan import make_plan

    progress = ui.progress_bars()
    checkpoint = Checkpoint.open(source, progress, lora or ())
    artifact = convert_in_one_pass(make_plan(checkpoint, loaded), name, out, progress)
    ui.print_deviations(artifact)
    ui.print_artifact(artifact, as_json=json)
    ui.print_exported_steps(artifact)
