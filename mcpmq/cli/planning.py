"""The command `plan` without its options."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.cli.sample_sets import open_optional_set

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.formats.recipes import FormatsByRecipe


def print_plans(
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
        ui.print_plans([(made, forecast(made, names, context)) for made, names in plans], as_json=as_json)
