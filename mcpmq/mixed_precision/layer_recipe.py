"""Write a recipe that removes the least important layers, with their measured cost."""

from pathlib import Path

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.dataset import SampleSet
from mcpmq.errors import RecipeError
from mcpmq.families.encoding import check_samples
from mcpmq.mixed_precision.layer_removal import LayerRemoval, measure_removal
from mcpmq.recipe import Recipe, to_toml
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import check_file, lock_output, output_errors
from mcpmq.system.progress import Progress

HEADER = "Recipe without some layers"  # beginning of the first comment of a recipe file


def write_layer_recipe(
    checkpoint: Checkpoint,
    base: str,
    out: Path,
    calibration: SampleSet,
    removal: tuple[str, int],
    threads: int,
    progress: Progress,
    device: str | None = None,
) -> LayerRemoval:
    """Measure the layers of a component, and write the recipe `base` without some of them; return the measurement.

    `removal` is the component and the number of its layers to remove.

    Raises:
        RecipeError: `base` is not valid or removes layers already, or the component has too few layers.
        DatasetError: a sample cannot be encoded.
        OutputError: the file is another one or inside of an input, or another process writes it.
    """
    recipe, (component, count) = Recipe.load(base), removal
    if recipe.layers:
        raise RecipeError(f"recipe `{recipe.name}` is {recipe.layers}", "give one without [layers]")
    check_file(out, checkpoint.folders | {calibration.path: "calibration set"}, f"# {HEADER}")
    with lock_output(out), compress(checkpoint, recipe, calibration, progress) as view:
        check_samples(view.family.open_processor(view.path), calibration.samples, progress)
        found = measure_removal(view, component, count, calibration, threads, progress, device)
        name = f"{recipe.name}-without-{count}-{component}-layers"
        written = recipe.model_copy(update={"name": name, "layers": found.table})
        with output_errors(out):
            write_durably(out, to_toml(written.to_dict(), {"": [f"{HEADER}, from `{recipe.name}`."]}))
    return found
