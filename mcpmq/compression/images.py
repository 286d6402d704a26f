"""Image-token budgets: a checkpoint with other limits of its image processor, as a view with rewritten text files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mcpmq.checkpoint import CONFIG, Checkpoint
from mcpmq.checkpoint.text_files import copy_files, to_json
from mcpmq.compression_tables import ImagesTable
from mcpmq.errors import RecipeError
from mcpmq.families.preprocessor import (
    NESTED_KEY,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    PreprocessorConfig,
    image_settings,
)
from mcpmq.system.json_file import read_json, read_optional_json
from mcpmq.system.temporary_folder import temporary_folder

CUTS_IMAGES = ("slice_mode", "crop_to_patches", "do_image_splitting")  # settings without which images have one slice
SLICES, SLICE_CONFIG = "max_slice_nums", "slice_config"  # also in config.json of MiniCPM-V


@contextmanager
def limit_images(checkpoint: Checkpoint, limits: ImagesTable | None) -> Iterator[Checkpoint]:
    """Yield the checkpoint with the limits of an [images] table in its preprocessor files; itself without a table.

    Raises:
        RecipeError: the image processor of the checkpoint does not have one of the limits.
    """
    if limits is None:
        yield checkpoint
        return
    changes = _settings(checkpoint, limits).limit_settings(limits)
    config = _with_slices(checkpoint.config, changes)
    with temporary_folder() as folder:
        copy_files(checkpoint.text_files, folder, {**_preprocessor(checkpoint, changes), CONFIG: to_json(config)})
        view = replace(checkpoint, path=folder, config=config, images=limits, view_of=checkpoint)
        view.family.open_vision_inputs(folder)
        yield view


def _settings(checkpoint: Checkpoint, limits: ImagesTable) -> PreprocessorConfig:
    """Return the settings of the image processor, which has all limits."""
    family = checkpoint.family.name
    if checkpoint.architecture.vision is None:
        raise RecipeError(f"the recipe has [images], and `{family}` has no vision encoder", "remove [images]")
    settings = image_settings(checkpoint.family.open_vision_inputs(checkpoint.path))
    if not settings.limit_names:
        raise RecipeError(f"the recipe has [images], and all images of `{family}` are of one size", "remove [images]")
    if unknown := sorted(limits.given.keys() - settings.limit_names):
        raise RecipeError(
            f"`{unknown[0]}` of [images] does not apply to the image processor of `{family}`",
            f"give one of: {', '.join(sorted(settings.limit_names))}",
        )
    if False in (getattr(settings, name, True) for name in CUTS_IMAGES):
        raise RecipeError(
            f"{limits} does not change images: the image processor of `{family}` does not cut them", "remove [images]"
        )
    return settings


def _with_slices(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the number of slices, where it has it."""
    changed = dict(config)
    if SLICES in changes and SLICES in config:
        changed[SLICES] = changes[SLICES]
    slicing = config.get(SLICE_CONFIG)
    if SLICES in changes and isinstance(slicing, Mapping) and SLICES in slicing:
        changed[SLICE_CONFIG] = {**slicing, SLICES: changes[SLICES]}
    return changed


def _preprocessor(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> dict[str, str]:
    """Return the new text of the file with the settings of the image processor, by its name; none without a file."""
    files = {file.name: file.path for file in checkpoint.text_files}
    processor = read_optional_json(checkpoint.path / PROCESSOR_CONFIG)
    if isinstance(nested := processor.get(NESTED_KEY), Mapping):
        return {PROCESSOR_CONFIG: to_json({**processor, NESTED_KEY: {**nested, **changes}})}
    if PREPROCESSOR_CONFIG not in files:
        return {}
    return {PREPROCESSOR_CONFIG: to_json({**read_json(files[PREPROCESSOR_CONFIG]), **changes})}
