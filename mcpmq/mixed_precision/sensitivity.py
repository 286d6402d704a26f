"""Measure the mean KLD of the model when one block is quantized, without gradients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log

from torch import Tensor

from mcpmq.calibrate.forward import encode_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.families.family import TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.mixed_precision.layer_error import PROBE_SCHEME
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.runners.runner import Runner
from mcpmq.runners.token_metrics import TokenMetrics
from mcpmq.runners.torch import TorchRunner, open_checkpoint
from mcpmq.system.progress import Progress
from mcpmq.system.temporary_folder import temporary_folder

MAX_MEASURED_LAYERS = 10  # per component; other layers are interpolated
DIVERGENCE_EPSILON = 1e-12  # nats; smaller values are rounding errors
ORIGINAL = "original"


def block_sensitivities(
    checkpoint: Checkpoint,
    blocks: Mapping[str, Sequence[TensorSpec]],
    samples: Sequence[Sample],
    threads: int,
    progress: Progress,
) -> dict[str, float]:
    """Return the mean KLD in nats over answer tokens for each block, with all of its weights on PROBE_SCHEME.

    A measurement runs all samples through the model. At most MAX_MEASURED_LAYERS layers of a component are measured;
    the logarithm of the KLD is interpolated between them.
    """
    processor = checkpoint.family.open_processor(checkpoint.path)
    inputs = encode_samples(processor, samples, progress)
    runner = open_checkpoint(checkpoint, threads)
    with temporary_folder() as folder:
        original = folder / ORIGINAL
        mean_kld(runner, inputs, TokenMetrics(inputs, original, {}))
        measured = {}
        for name in progress(_measured_blocks(list(blocks)), "measuring block sensitivity"):
            metrics = TokenMetrics(inputs, None, {ORIGINAL: original})
            kld = mean_kld(_quantize_block(runner, blocks[name]), inputs, metrics)
            measured[name] = max(DIVERGENCE_EPSILON, kld)
    return {name: measured.get(name) or _interpolate(name, measured) for name in blocks}


def joint_divergence(
    checkpoint: Checkpoint,
    blocks: Mapping[str, Sequence[TensorSpec]],
    samples: Sequence[Sample],
    threads: int,
    progress: Progress,
) -> float:
    """Return the mean KLD in nats over answer tokens with the weights of all blocks on PROBE_SCHEME."""
    inputs = encode_samples(checkpoint.family.open_processor(checkpoint.path), samples, progress)
    runner, specs = open_checkpoint(checkpoint, threads), [spec for several in blocks.values() for spec in several]
    with temporary_folder() as folder:
        original = folder / ORIGINAL
        mean_kld(runner, inputs, TokenMetrics(inputs, original, {}))
        metrics = TokenMetrics(inputs, None, {ORIGINAL: original})
        return mean_kld(_quantize_block(runner, specs), inputs, metrics)


def mean_kld(runner: Runner, inputs: Sequence[Inputs], metrics: TokenMetrics) -> float:
    """Run all samples; return the mean KLD over answer tokens, 0 without a comparison."""
    comparisons = [one for results in runner.run(inputs, metrics) for one in results.compared.values()]
    metrics.close()
    divergences = [kld for comparison in comparisons for kld in comparison.kl_divergences]
    return sum(divergences) / max(1, len(divergences))


def _quantize_block(runner: TorchRunner, specs: Sequence[TensorSpec]) -> TorchRunner:
    """Return a runner whose weights of `specs` are on PROBE_SCHEME."""
    names, weights = {spec.name for spec in specs}, runner.weights

    def read(spec: TensorSpec) -> StoredWeight:
        stored = weights.read(spec)
        if isinstance(stored, Tensor) and spec.name in names:
            return ROUNDING_FUNCTIONS["rtn"](stored, PROBE_SCHEME, None)
        return stored

    return replace(runner, weights=replace(weights, read=read))


def _measured_blocks(names: Sequence[str]) -> list[str]:
    """Return all blocks, but of components with many layers only some, evenly spread, with the first and the last."""
    measured = []
    for layers in _by_component(names):
        count = min(len(layers), MAX_MEASURED_LAYERS)
        indices = {round(index * (len(layers) - 1) / max(1, count - 1)) for index in range(count)}
        measured += [layers[index] for index in sorted(indices)]
    return measured


def _by_component(names: Sequence[str]) -> Iterator[list[str]]:
    components = dict.fromkeys(name.partition(".layers.")[0] for name in names)
    for component in components:
        yield [name for name in names if name.partition(".layers.")[0] == component]


def _interpolate(name: str, measured: Mapping[str, float]) -> float:
    """Interpolate the logarithm of the KLD linearly between the nearest measured layers."""
    component, _, index = name.partition(".layers.")
    prefix = f"{component}.layers."
    layers = {int(one.removeprefix(prefix)): kld for one, kld in measured.items() if one.startswith(prefix)}
    below, above = max(one for one in layers if one < int(index)), min(one for one in layers if one > int(index))
    fraction = (int(index) - below) / (above - below)
    return exp((1 - fraction) * log(layers[below]) + fraction * log(layers[above]))
