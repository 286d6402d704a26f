"""Stored tensors of a model: names as published, as the torch module has them, and as training tools save them."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcpmq.checkpoint.weight_files import UNQUANTIZED_HINT
from mcpmq.errors import CheckpointError
from mcpmq.families.family import Family, TensorSpec
from mcpmq.system.safetensors_file import TensorEntry, have_equal_values

BASE_PREFIX = "model."  # of the base model in transformers; its classes load names with and without it
# Parts of names that torch.compile, DistributedDataParallel, FSDP, activation checkpointing and peft add.
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
LEADING_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.)+")
# Buffers that the model computes; older code stored them.
COMPUTED_BUFFERS = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids)$|(?:^|\.)resampler\.pos_embed$"
)
QUANTIZED_PARTS = re.compile(
    r"\.(?:qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|quant_state\.\w+|SCB|weight_packed|weight_scale(?:_inv)?"
    r"|weight_zero_point|input_scale|scale_inv)$"
)
ADAPTER_PARTS = re.compile(r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save)\.")


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """The tensor of every specification, and the stored head of a model whose head is declared tied."""

    entries: Mapping[str, TensorEntry]  # by common name
    own_head: str = ""  # stored name of a head that differs from the embedding


def unwrap_names(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors without the prefixes of training tools.

    Raises:
        CheckpointError: the weights are quantized, belong to an adapter, or two tensors have the same name.
    """
    if found := next(filter(QUANTIZED_PARTS.search, entries), None):
        raise CheckpointError(f"the checkpoint is already quantized: it has the tensor `{found}`", UNQUANTIZED_HINT)
    if found := next(filter(ADAPTER_PARTS.search, entries), None):
        raise CheckpointError(
            f"the weights of an adapter are not merged: there is a tensor `{found}`",
            "merge the adapter into its base model first (peft: `merge_and_unload`, then `save_pretrained`)",
        )
    stored: dict[str, str] = {}
    for name in entries:
        plain = unwrap_name(name)
        check_same_values(entries, stored.setdefault(plain, name), name)
    return {plain: entries[name] for plain, name in stored.items()}


def unwrap_name(name: str) -> str:
    """Return a name without the prefixes of training tools."""
    return LEADING_WRAPPERS.sub("", WRAPPERS.sub("", name))


def passthrough_specs(family: Family, stored: Mapping[str, TensorEntry]) -> Iterator[TensorSpec]:
    """Yield the tensors of components that the family copies unchanged."""
    for component, beginning in family.passthrough:
        for name in sorted(stored):
            if name.startswith(f"{beginning}."):
                yield TensorSpec(f"{component}.{name}", name, stored[name].shape)


def match_tensors(specs: Sequence[TensorSpec], stored: Mapping[str, TensorEntry]) -> MatchedTensors:
    """Find the tensor of every specification, under its published name or that of its torch parameter.

    Computed buffers are skipped. A stored head that equals the tied embedding is skipped too; one that differs is
    returned as `own_head`.

    Raises:
        CheckpointError: a tensor is missing, unknown or stored twice, or has another shape.
    """
    names, found = accepted_names(specs), _Found()
    for name in stored:
        if name in names:
            found.add(*names[name], name)
    unknown = [name for name in stored if name not in names and not COMPUTED_BUFFERS.search(name)]
    chosen = {spec.name: found.choose(spec, stored) for spec in specs if spec.name in found.stored_names}
    _check_complete(specs, chosen, stored)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors are unknown to the family, first `{min(unknown)}`",
            "the weights and config.json belong to different models, or training added the tensors: remove them",
        )
    for spec in specs:
        _check_shape(spec, stored[chosen[spec.name]])
    own_head = next(filter(None, (found.own_head(spec, stored) for spec in specs)), "")
    return MatchedTensors({name: stored[key] for name, key in chosen.items()}, own_head)


class _Found:
    """Stored names of each tensor, by the name of the parameter that they give it."""

    def __init__(self) -> None:
        self.stored_names: dict[str, dict[str, list[str]]] = {}

    def add(self, spec: TensorSpec, parameter: str, name: str) -> None:
        """Record a stored name."""
        self.stored_names.setdefault(spec.name, {}).setdefault(parameter, []).append(name)

    def choose(self, spec: TensorSpec, stored: Mapping[str, TensorEntry]) -> str:
        """Return the name to read; a tied embedding may be stored as the head only."""
        by_parameter = self.stored_names[spec.name]
        for names in by_parameter.values():
            for other in names[1:]:
                check_same_values(stored, names[0], other)
        return by_parameter[min(by_parameter, key=lambda parameter: parameter == _head(spec))][0]

    def own_head(self, spec: TensorSpec, stored: Mapping[str, TensorEntry]) -> str:
        """Return the stored name of a head that differs from the tied embedding, else an empty string."""
        by_parameter = self.stored_names[spec.name]
        if len(by_parameter) < 2:
            return ""
        embedding, [head, *_] = self.choose(spec, stored), by_parameter[_head(spec)]
        same_shape = stored[head].shape == stored[embedding].shape
        return "" if same_shape and have_equal_values(stored[embedding], stored[head]) else head


def _head(spec: TensorSpec) -> str:
    """Return the parameter name of the head for a tied embedding, else an empty string."""
    return spec.parameter_names[1] if spec.alias else ""


def accepted_names(specs: Sequence[TensorSpec]) -> dict[str, tuple[TensorSpec, str]]:
    """Return each accepted stored name with its tensor and the parameter: the exact names take precedence."""
    names: dict[str, tuple[TensorSpec, str]] = {}
    for rename in (str, lambda name: name.removeprefix(BASE_PREFIX), lambda name: BASE_PREFIX + name):
        for spec in specs:
            head = _head(spec)
            for name in (spec.hub_name, *spec.parameter_names):
                names.setdefault(rename(name), (spec, head if name == head else spec.hub_name))
    return names


def check_same_values(stored: Mapping[str, TensorEntry], first: str, second: str) -> None:
    """Check that two tensors have the same values.

    Raises:
        CheckpointError: they differ.
    """
    if first == second:
        return
    if stored[first].shape != stored[second].shape or not have_equal_values(stored[first], stored[second]):
        raise CheckpointError(
            f"`{first}` and `{second}` are the same weight with different values",
            "keep the one that belongs to the model, and remove the other",
        )


def _check_complete(specs: Sequence[TensorSpec], chosen: Mapping[str, str], stored: Mapping[str, TensorEntry]) -> None:
    missing = [spec.hub_name for spec in specs if spec.name not in chosen]
    if not missing:
        return
    if renamed := next((name for name in stored if name.endswith(f".{missing[0]}")), None):
        prefix = renamed.removesuffix(missing[0])
        raise CheckpointError(
            f"{len(missing)} tensors are missing, first `{missing[0]}`; it is stored as `{renamed}`",
            f"save the weights without the prefix `{prefix}`",
        )
    hint = "download every shard"
    if [spec.name for spec in specs if spec.name not in chosen] == ["head"]:
        hint = "if the head of this model is its embedding, set `tie_word_embeddings` to true in config.json"
    raise CheckpointError(f"{len(missing)} tensors are missing, first `{missing[0]}`", hint)


def _check_shape(spec: TensorSpec, entry: TensorEntry) -> None:
    if entry.shape != spec.shape:
        raise CheckpointError(
            f"`{spec.hub_name}` has shape {list(entry.shape)}, config.json requires {list(spec.shape)}",
            "the weights and the configuration belong to different models",
        )


def check_dtypes(specs: Iterable[TensorSpec], entries: Mapping[str, TensorEntry], allowed: Collection[str]) -> None:
    """Check the dtypes of stored tensors, by common name.

    Raises:
        CheckpointError: a dtype is not among `allowed`, for example that of packed weights.
    """
    for spec in specs:
        if (dtype := entries[spec.name].dtype) not in allowed:
            message = f"`{spec.hub_name}` has dtype {dtype}, expected {', '.join(sorted(allowed))}"
            raise CheckpointError(message, UNQUANTIZED_HINT)


def untie_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json for a head of its own, as transformers loads a stored head that differs from the embedding."""
    text = config.get("text_config")
    inner = {"text_config": {**text, "tie_word_embeddings": False}} if isinstance(text, Mapping) else {}
    return {**config, "tie_word_embeddings": False, **inner}
