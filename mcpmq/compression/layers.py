"""Layer removal: a checkpoint without some layers of its language model or vision encoder, as a view that renumbers."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mcpmq.checkpoint import CONFIG, Checkpoint
from mcpmq.checkpoint.text_files import copy_files, to_json
from mcpmq.compression.layer_config import config_without_layers, is_same, shape_without_layers
from mcpmq.compression_tables import LayersTable
from mcpmq.errors import CheckpointError, RecipeError
from mcpmq.families.family import Architecture
from mcpmq.system.temporary_folder import temporary_folder

LAYER = re.compile(r"(language|vision|projector)\.layers\.(\d+)\.")
NUMBERED_WITH = {"projector": "vision"}  # connectors of DeepStack have the numbers of vision layers


@contextmanager
def remove_layers(checkpoint: Checkpoint, table: LayersTable | None) -> Iterator[Checkpoint]:
    """Yield the checkpoint without the layers of a [layers] table; itself without a table.

    Raises:
        RecipeError: a layer does not exist, or other parts of the model depend on its number.
        CheckpointError: the configuration of the family cannot describe the rest.
    """
    if table is None:
        yield checkpoint
        return
    with without_layers(checkpoint, table.remove) as view:
        yield replace(view, layers=table)


@contextmanager
def without_layers(checkpoint: Checkpoint, removed: Collection[str]) -> Iterator[Checkpoint]:
    """Yield the checkpoint without layers, given by common names such as `language.layers.3`. No weight is read.

    Raises:
        RecipeError: a layer does not exist, or other parts of the model depend on its number.
        CheckpointError: the configuration of the family cannot describe the rest.
    """
    kept = kept_layers(checkpoint.architecture, removed)
    config = config_without_layers(checkpoint.config, checkpoint.architecture, kept)
    with temporary_folder() as folder:
        copy_files(checkpoint.text_files, folder, {CONFIG: to_json(config)})
        yield replace(_renumbered(checkpoint, config, kept), path=folder, view_of=checkpoint)


def kept_layers(architecture: Architecture, removed: Collection[str]) -> dict[str, list[int]]:
    """Return the numbers of the layers that stay, by component.

    Raises:
        RecipeError: a layer does not exist, or other parts of the model depend on its number.
    """
    required = required_layers(architecture)
    for name in removed:
        component, _, number = name.partition(".layers.")
        count = layer_counts(architecture).get(component, 0)
        if int(number) >= count:
            raise RecipeError(f"`{name}` does not exist: the component has {count} layers", "correct [layers]")
        if reason := required.get(name):
            raise RecipeError(f"`{name}` cannot be removed: {reason}", "remove another layer")
    kept = {
        component: [number for number in range(count) if f"{component}.layers.{number}" not in removed]
        for component, count in layer_counts(architecture).items()
    }
    if empty := [component for component, numbers in kept.items() if not numbers]:
        raise RecipeError(f"[layers] removes all layers of `{empty[0]}`", "keep at least one")
    return kept


def layer_counts(architecture: Architecture) -> dict[str, int]:
    """Return the number of layers of every component that layers can be removed from."""
    vision = {"vision": architecture.vision.num_layers} if architecture.vision else {}
    return {"language": architecture.language.num_layers, **vision}


def required_layers(architecture: Architecture) -> dict[str, str]:
    """Return the layers that cannot be removed, with the reason."""
    vision, found = architecture.vision, dict[str, str]()
    for number in range(architecture.num_deepstack_layers):
        found[f"language.layers.{number}"] = "image features are added after it"
    for number in vision.deepstack_layers if vision else ():
        found[f"vision.layers.{number}"] = "its output is added to the language model"
    if vision and vision.merger_layer is not None:
        found[f"vision.layers.{vision.merger_layer}"] = "a merger follows it"
    return found


def _renumbered(checkpoint: Checkpoint, config: Mapping[str, Any], kept: Mapping[str, list[int]]) -> Checkpoint:
    """Return the checkpoint with the tensors of the kept layers, under their new names."""
    architecture = checkpoint.family.parse_architecture(config)
    expected = shape_without_layers(checkpoint.architecture, kept)
    if not is_same(architecture, expected):
        raise CheckpointError(
            f"layers of `{checkpoint.family.name}` cannot be removed: its config.json would describe other layers",
            "remove others, so that the kinds of layers alternate as before, or remove [layers]",
        )
    computed = checkpoint.family.tensor_specs(architecture)
    old_names = {spec.name: with_layer_numbers(spec.name, kept) for spec in computed}
    before = {spec.name: spec for spec in checkpoint.specs}
    passthrough = {component for component, _ in checkpoint.family.passthrough}
    copied = [spec for spec in checkpoint.specs if spec.component in passthrough and spec.name not in old_names]
    shapes = {name: before[old].shape for name, old in old_names.items()}  # a trimmed vocabulary has fewer rows
    specs = (*(replace(spec, shape=shapes[spec.name]) for spec in computed), *copied)
    names = old_names | {spec.name: spec.name for spec in copied}
    adapters = tuple(
        replace(one, changes={new: one.changes[old] for new, old in names.items() if old in one.changes})
        for one in checkpoint.adapters
    )
    entries = {new: checkpoint.entries[old] for new, old in names.items()}
    view = replace(checkpoint, config=config, architecture=architecture, specs=specs)
    return replace(view, entries=entries, adapters=adapters)


def with_layer_numbers(name: str, kept: Mapping[str, Sequence[int] | Mapping[int, int]]) -> str:
    """Return the name of a tensor with another number of its layer, given by component and number."""
    found = LAYER.match(name)
    if found is None:
        return name
    component, number = found[1], int(found[2])
    old = kept[NUMBERED_WITH.get(component, component)][number]
    return f"{component}.layers.{old}.{name[found.end() :]}"
