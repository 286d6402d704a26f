"""Layers as choices of a search: the loss of the model without each of them, and the weights of the others."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression.layers import kept_layers, required_layers, with_layer_numbers
from mcpmq.mixed_precision.choices import Option, Removal
from mcpmq.mixed_precision.layer_removal import MAX_CANDIDATES, RemovalMeter
from mcpmq.system.progress import Progress

Value = TypeVar("Value")


def measure_choices(meter: RemovalMeter, weights: Sequence[str], most: int, progress: Progress) -> tuple[Removal, ...]:
    """Measure the mean KLD without each of the layers of least influence, of which at most `most` may be removed."""
    required = required_layers(meter.checkpoint.architecture)
    removable = sorted((layer for layer in meter.influences if layer not in required), key=meter.influences.__getitem__)
    return tuple(
        Removal(layer, tuple(name for name in weights if name.startswith(f"{layer}.")), meter.without([layer]))
        for layer in progress(removable[: MAX_CANDIDATES + most], "measuring layers")
    )


def renumbered(
    checkpoint: Checkpoint,
    removed: Sequence[str],
    assignment: Mapping[str, Option],
    options: Mapping[str, Sequence[Option]],
) -> tuple[dict[str, Option], dict[str, Sequence[Option]]]:
    """Return an assignment and the options of its weights, by their names in the checkpoint without layers."""
    kept = kept_layers(checkpoint.architecture, removed)
    specs = [spec.name for spec in checkpoint.specs if spec.name in assignment]
    new_names = {with_layer_numbers(name, _inverse(kept)): name for name in specs}
    return {new: assignment[old] for new, old in new_names.items()}, {
        new: options[old] for new, old in new_names.items()
    }


def _inverse(kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, int]]:
    """Return the new number of every kept layer, by component."""
    return {component: {old: new for new, old in enumerate(layers)} for component, layers in kept.items()}
