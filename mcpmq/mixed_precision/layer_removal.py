"""Measure the influence of layers, and the mean KLD of a model without some of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import encode_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression.layers import layer_counts, required_layers, without_layers
from mcpmq.compression_tables import LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, RecipeError
from mcpmq.execution.device import resolve_device
from mcpmq.families.blocks import block_name
from mcpmq.families.inputs import Inputs
from mcpmq.mixed_precision.sensitivity import ORIGINAL, mean_kld
from mcpmq.runners.token_metrics import TokenMetrics
from mcpmq.runners.torch import TorchRunner, open_checkpoint
from mcpmq.system.progress import Progress
from mcpmq.system.table import Row, Table
from mcpmq.system.temporary_folder import temporary_folder

COMPONENTS = ("language.layers.", "vision.layers.")
MAX_CANDIDATES = 8  # layers of least influence whose removal is measured at each step


@dataclass(frozen=True, slots=True)
class RemovalStep:
    """The layers that are removed after a step, and the mean KLD in nats without them."""

    layers: tuple[str, ...]
    kl_divergence: float


@dataclass(frozen=True, slots=True)
class LayerRemoval:
    """The influence of every layer of a component, the KLD without each candidate, and the steps of the removal."""

    influences: Mapping[str, float]  # 1 - cosine of input and output, a mean over tokens
    divergences: Mapping[str, float]  # without one layer, of the candidates of the first step
    steps: tuple[RemovalStep, ...]
    table: LayersTable  # with the layers of the last step

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the measurement."""
        steps = [asdict(step) for step in self.steps]
        found = {"influences": dict(self.influences), "divergences": dict(self.divergences), "steps": steps}
        return found | {"answer_tokens": self.table.answer_tokens, "calibration": self.table.calibration}

    def to_table(self) -> Table:
        """Return a row for every layer, and one for every step."""
        rows: list[Row] = [
            (layer, [f"{value:.4f}", f"{self.divergences[layer]:.4f}" if layer in self.divergences else ""])
            for layer, value in self.influences.items()
        ]
        rows += [(f"without {', '.join(one.layers)}", ["", f"{one.kl_divergence:.4f}"]) for one in self.steps]
        notes = [
            "influence: 1 - cosine of the input and the output of a layer, a mean over tokens",
            f"mean KLD: KL(original || original without layers) in nats, {self.table.answer_tokens:,} answer tokens in"
            f" {self.table.calibration}",
        ]
        return Table("Layers", ["influence", "mean KLD without it"], rows, notes)


@dataclass(frozen=True, slots=True)
class RemovalMeter:
    """Encoded samples with the log-probabilities of a checkpoint, and the influence of its layers on them."""

    checkpoint: Checkpoint
    inputs: Sequence[Inputs]
    original: Path  # log-probabilities
    influences: Mapping[str, float]  # of the layers that samples reach
    threads: int
    device: str | None
    calibration: str

    @property
    def answer_tokens(self) -> int:
        """Number of answer tokens."""
        return sum(len(one.measured) for one in self.inputs)

    def without(self, removed: Sequence[str]) -> float:
        """Return the mean KLD in nats of the checkpoint without layers."""
        with without_layers(self.checkpoint, removed) as view:
            runner = open_checkpoint(view, self.threads, resolve_device(self.device, view.nbytes))
            return mean_kld(runner, self.inputs, TokenMetrics(self.inputs, None, {ORIGINAL: self.original}))

    def table(self, removed: Sequence[str], kl_divergence: float | None = None) -> LayersTable:
        """Return the [layers] table of layers; their divergence is measured if it is not given."""
        found = self.without(removed) if kl_divergence is None else kl_divergence
        return LayersTable(
            remove=tuple(removed),
            influence=tuple(round(self.influences[layer], 6) for layer in removed),
            kl_divergence=round(found, 6),
            answer_tokens=self.answer_tokens,
            calibration=self.calibration,
        )


@contextmanager
def open_meter(
    checkpoint: Checkpoint, calibration: SampleSet, threads: int, progress: Progress, device: str | None = None
) -> Iterator[RemovalMeter]:
    """Run the samples through a checkpoint; the meter is valid inside of the `with` block.

    Raises:
        DatasetError: a sample cannot be encoded.
    """
    inputs = encode_samples(checkpoint.family.open_processor(checkpoint.path), calibration.samples, progress)
    runner = open_checkpoint(checkpoint, threads, resolve_device(device, checkpoint.nbytes))
    source = f"{calibration.name}, SHA-256 {calibration.sha256[:12]}"
    with temporary_folder() as folder:
        original, found = folder / ORIGINAL, dict[str, list[float]]()
        with _observed(runner, found):
            mean_kld(runner, inputs, TokenMetrics(inputs, original, {}))
        influences = {layer: sum(values) / len(values) for layer, values in found.items() if values}
        yield RemovalMeter(checkpoint, inputs, original, influences, threads, device, source)


def measure_removal(
    checkpoint: Checkpoint,
    component: str,
    count: int,
    calibration: SampleSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
) -> LayerRemoval:
    """Remove `count` layers of a component one after another: in each step that of least KLD.

    Candidates of a step are the layers of least influence. Source of block influence: arXiv 2403.03853.

    Raises:
        RecipeError: the component has too few layers that can be removed.
        DatasetError: a sample cannot be encoded, or none reaches the component.
    """
    removable = _removable(checkpoint, component, count)
    with open_meter(checkpoint, calibration, threads, progress, device) as meter:
        if removable[0] not in meter.influences:
            raise DatasetError(f"no token of the set reaches `{removable[0]}`", "give a set with images")
        ordered = sorted(removable, key=meter.influences.__getitem__)
        single, steps = dict[str, float](), list[RemovalStep]()
        for _ in progress(range(count), "removing layers"):
            removed = steps[-1].layers if steps else ()
            candidates = [layer for layer in ordered if layer not in removed][:MAX_CANDIDATES]
            measured = {layer: meter.without((*removed, layer)) for layer in candidates}
            single = single or measured
            best = min(measured, key=measured.__getitem__)
            steps.append(RemovalStep((*removed, best), measured[best]))
        influences = {layer: meter.influences[layer] for layer in _layers(checkpoint, component)}
        last = meter.table(steps[-1].layers, steps[-1].kl_divergence)
    return LayerRemoval(influences, single, tuple(steps), last)


def _layers(checkpoint: Checkpoint, component: str) -> list[str]:
    return [f"{component}.layers.{number}" for number in range(layer_counts(checkpoint.architecture)[component])]


def _removable(checkpoint: Checkpoint, component: str, count: int) -> list[str]:
    counts, required = layer_counts(checkpoint.architecture), required_layers(checkpoint.architecture)
    if component not in counts:
        raise RecipeError(f"the model has no component `{component}`", f"give one of: {', '.join(counts)}")
    removable = [layer for layer in _layers(checkpoint, component) if layer not in required]
    if count >= counts[component] or count > len(removable):
        raise RecipeError(
            f"{count} of {counts[component]} layers of `{component}` cannot be removed, {len(removable)} can be",
            "remove fewer",
        )
    return removable


@contextmanager
def _observed(runner: TorchRunner, found: dict[str, list[float]]) -> Iterator[None]:
    """Add 1 - cosine of the input and output of every layer and token to `found` inside of the block."""
    handles = []
    for block, parameters in runner.model.blocks.items():
        name = block_name(next(iter(parameters.values())).name)
        if name.startswith(COMPONENTS):
            hook = partial(_observe, found.setdefault(name, []))
            handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observe(found: list[float], _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
    before = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
    after = output[0] if isinstance(output, tuple) else output
    cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    found.extend((1 - cosine).flatten().clamp(min=0).tolist())
