"""config.json and hyperparameters of a model without some layers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isclose, sqrt
from typing import Any

from mcpmq.errors import CheckpointError
from mcpmq.families.family import Architecture, VisionShape
from mcpmq.families.language_shape import LanguageShape

COUNT, DEPTH = "num_hidden_layers", "depth"
# Tables with the sizes of the language model, as paths of keys; older configurations have them at the top level.
LANGUAGE_TABLES = ((), ("text_config",), ("llm_config",), ("thinker_config", "text_config"))
VISION_TABLES = (("vision_config",), ("thinker_config", "vision_config"))
INDEX_LISTS = ("deepstack_visual_indexes", "fullatt_block_indexes")
MERGER_KEY = "insert_layer_id"
RESIDUAL_KEY = "scale_depth"  # divided by the root of the number of layers, so it changes with this number
Kept = Mapping[str, Sequence[int]]  # numbers of layers by component


def config_without_layers(config: Mapping[str, Any], architecture: Architecture, kept: Kept) -> dict[str, Any]:
    """Return config.json with the number of layers, their kinds, and the indices of layers.

    Raises:
        CheckpointError: no table has the number of layers of the language model.
    """
    language, vision = architecture.language, architecture.vision
    paths = [path for path in LANGUAGE_TABLES if COUNT in (_table(config, path) or {})]
    if not paths:
        raise CheckpointError(f"`config.json` has no `{COUNT}`", "compare it with the published file")
    changed = dict(config)
    for path in paths:
        changed = _changed(changed, path, _language_keys(_table(config, path) or {}, language, kept["language"]))
    for path in VISION_TABLES:
        if vision and len(kept["vision"]) < vision.num_layers and (table := _table(config, path)) is not None:
            changed = _changed(changed, path, _vision_keys(table, vision, kept["vision"]))
    if vision and vision.merger_layer is not None:
        changed[MERGER_KEY] = kept["vision"].index(vision.merger_layer)
    return changed


def _table(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    for key in path:
        found = config.get(key)
        if not isinstance(found, Mapping):
            return None
        config = found
    return config


def _changed(config: Mapping[str, Any], path: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with new keys in the table at a path."""
    if not path:
        return {**config, **keys}
    return {**config, path[0]: _changed(config[path[0]], path[1:], keys)}


def _language_keys(table: Mapping[str, Any], shape: LanguageShape, kept: Sequence[int]) -> dict[str, Any]:
    """Return the changed keys of the language model: lists have one entry for each layer."""
    count = shape.num_layers
    lists = {key: value for key, value in table.items() if isinstance(value, list) and len(value) == count}
    keys: dict[str, Any] = {key: [value[number] for number in kept] for key, value in lists.items()}
    if "layer_types" not in table and (shape.linear_attention or shape.local_attention or shape.short_convolution):
        keys["layer_types"] = [_kind(shape, number) for number in kept]
    if RESIDUAL_KEY in table:
        keys[RESIDUAL_KEY] = table[RESIDUAL_KEY] * sqrt(len(kept) / count)
    return {**keys, COUNT: len(kept)}


def _kind(shape: LanguageShape, layer: int) -> str:
    if shape.is_linear_attention(layer):
        return "linear_attention"
    if shape.is_convolution(layer):
        return "conv"
    return "sliding_attention" if shape.is_local(layer) else "full_attention"


def _vision_keys(table: Mapping[str, Any], shape: VisionShape, kept: Sequence[int]) -> dict[str, Any]:
    """Return the changed keys of the vision encoder; a dropped last layer stays in the number of layers."""
    name = DEPTH if DEPTH in table or shape.kind.startswith("qwen") else COUNT
    dropped = table.get(name, shape.num_layers) - shape.num_layers
    indices = {key: _renumbered(table[key], kept) for key in INDEX_LISTS if isinstance(table.get(key), list)}
    if shape.full_attention_layers and "fullatt_block_indexes" not in indices:
        indices["fullatt_block_indexes"] = _renumbered(shape.full_attention_layers, kept)
    if shape.deepstack_layers and "deepstack_visual_indexes" not in indices:
        indices["deepstack_visual_indexes"] = _renumbered(shape.deepstack_layers, kept)
    return {**indices, name: len(kept) + max(0, dropped)}


def _renumbered(layers: Sequence[int], kept: Sequence[int]) -> list[int]:
    return [kept.index(layer) for layer in layers if layer in kept]


def shape_without_layers(architecture: Architecture, kept: Kept) -> Architecture:
    """Return the hyperparameters that a configuration without layers must have."""
    language, vision = architecture.language, architecture.vision
    linear, local, layers = language.linear_attention, language.local_attention, kept["language"]
    convolution = language.short_convolution
    changed = replace(
        language,
        num_layers=len(layers),
        linear_attention=linear and replace(linear, layers=tuple(_renumbered(linear.layers, layers))),
        local_attention=local and replace(local, layers=tuple(_renumbered(local.layers, layers))),
        short_convolution=convolution and replace(convolution, layers=tuple(_renumbered(convolution.layers, layers))),
    )
    return replace(architecture, language=changed, vision=vision and _vision_shape(vision, kept["vision"]))


def _vision_shape(vision: VisionShape, kept: Sequence[int]) -> VisionShape:
    merger = vision.merger_layer
    return replace(
        vision,
        num_layers=len(kept),
        deepstack_layers=tuple(_renumbered(vision.deepstack_layers, kept)),
        full_attention_layers=tuple(_renumbered(vision.full_attention_layers, kept)),
        merger_layer=None if merger is None else kept.index(merger),
    )


def is_same(found: Architecture, expected: Architecture) -> bool:
    """Return whether hyperparameters are equal, with the factor of residuals up to rounding."""
    scale = found.language.residual_scale
    if not isclose(scale, expected.language.residual_scale, rel_tol=1e-9):
        return False
    return found == replace(expected, language=replace(expected.language, residual_scale=scale))
