"""Component ablation: the loss of the original with one component quantized at a time, in PyTorch."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import (
    ORIGINAL,
    Difference,
    EncodedInputs,
    Record,
    Settings,
    differences,
    encode_samples,
    measure_original,
)
from mcpmq.evaluate.measure import OriginalResult, sample_metrics
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.families.family import TensorSpec
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report.compare import check_source, dataset_info, describe_environment
from mcpmq.report.numbers import nats_cells, ratio_cells
from mcpmq.report.report import DatasetInfo, Environment, SourceInfo
from mcpmq.report.tables import GROUP_LABELS, INTERVAL_NOTE
from mcpmq.runners.token_metrics import TokenMetrics
from mcpmq.runners.torch import TorchRunner, WeightStore, build_runner
from mcpmq.system.durable_file import write_durably
from mcpmq.system.table import Row, Table, format_megabytes

ABLATION_FILE = "components.json"
ALL_COMPONENTS = "all"


class ComponentResult(Record):
    """The original with one component quantized."""

    schemes: tuple[str, ...]  # of its matrices and tables, sorted by size
    nbytes: int
    original_nbytes: int
    differences: dict[str, Difference]  # from the original, by group


class ComponentAblation(Record):
    """The loss of every component of a quantized model."""

    schema_version: Literal[1] = 1
    checkpoint: SourceInfo
    recipe: str
    eval_set: DatasetInfo
    components: dict[str, ComponentResult]  # in the order of the forward pass; last: all
    environment: Environment

    def write(self, folder: Path) -> None:
        """Write components.json.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / ABLATION_FILE, self.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise OutputError(
                f"`{ABLATION_FILE}` cannot be written to `{folder}`: {error}", "give another folder"
            ) from error


def ablate_components(
    checkpoint: Checkpoint, quantized: QuantizedModel, samples: SampleSet, settings: Settings
) -> ComponentAblation:
    """Measure the original with each component quantized alone, and with all components quantized.

    Raises:
        ArtifactError: the quantized model was made from another checkpoint, its files changed, or nothing is quantized.
        EngineError: a loss is not finite.
    """
    check_source(checkpoint, quantized.artifact)
    if compression := quantized.artifact.manifest.compression:
        raise ArtifactError(
            f"`{quantized.path}` has {compression}, so its components do not fit to those of the original",
            "quantize the checkpoint with all tokens, layers and image tokens",
        )
    quantized.artifact.verify()
    torch.set_num_threads(settings.threads)
    names = list(dict.fromkeys(tensor.spec.component for tensor in quantized.tensors if tensor.scheme))
    if not names:
        raise ArtifactError(f"no weight of `{quantized.path}` is quantized", "give a quantized model")
    with encode_samples(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        subsets = {**{name: frozenset({name}) for name in names}, ALL_COMPONENTS: frozenset(names)}
        results = {
            name: _measure(checkpoint, quantized, subset, inputs, original, settings)
            for name, subset in subsets.items()
        }
    return ComponentAblation(
        checkpoint=SourceInfo(name=checkpoint.merged_name, sha256=checkpoint.sha256),
        recipe=str(quantized.artifact.manifest.recipe.get("name", "")),
        eval_set=dataset_info(samples, settings),
        components=results,
        environment=describe_environment(settings),
    )


def _measure(
    checkpoint: Checkpoint,
    quantized: QuantizedModel,
    components: frozenset[str],
    inputs: EncodedInputs,
    original: OriginalResult,
    settings: Settings,
) -> ComponentResult:
    runner = _runner(checkpoint, quantized, components)
    metrics = TokenMetrics(inputs.store, None, {ORIGINAL: original.logprobs})
    label = f"measuring with {' and '.join(sorted(components))} quantized"
    progress = settings.progress(range(len(inputs.store)), label)
    results = [result for result, _ in zip(runner.run(inputs.store, metrics), progress, strict=True)]
    metrics.close()
    samples = [sample_metrics(*one) for one in zip(inputs.store, inputs.groups, results, strict=True)]
    tensors = [tensor for tensor in quantized.tensors if tensor.spec.component in components]
    nbytes: Counter[str] = Counter()
    for tensor in tensors:
        nbytes[str(tensor.scheme)] += tensor.nbytes if tensor.scheme and tensor.spec.role != "other" else 0
    return ComponentResult(
        schemes=tuple(scheme for scheme, size in nbytes.most_common() if size),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        original_nbytes=sum(tensor.source_nbytes for tensor in tensors),
        differences=differences(original.measurement.samples, samples, ORIGINAL),
    )


def _runner(checkpoint: Checkpoint, quantized: QuantizedModel, components: frozenset[str]) -> TorchRunner:
    """Return a runner of the original with the quantized weights of some components."""

    def read(spec: TensorSpec) -> StoredWeight:
        return quantized.load(spec.name) if spec.component in components else checkpoint.load(spec)

    names = [spec.name for spec in checkpoint.specs if spec.component in components]
    grids = {name: grid for name in names if (grid := quantized.input_grids(name))}
    weights = WeightStore(checkpoint.specs, read, grids)
    return build_runner(checkpoint.path, checkpoint.family, checkpoint.config, weights, ())


def ablation_table(ablation: ComponentAblation) -> Table:
    """Return a table with a column for every component, and one for all components."""
    results = list(ablation.components.values())
    sizes = [[_megabytes(size) for size in (one.nbytes, one.original_nbytes)] for one in results]
    rows: list[Row] = [
        ("schemes", [", ".join(one.schemes) for one in results]),
        ("weights, MB", [after for after, _ in sizes]),
        ("  of the original, MB", [before for _, before in sizes]),
    ]
    for group in results[-1].differences:
        rows += _group_rows(group, ablation.components)
    used = ablation.eval_set
    title = f"{ablation.checkpoint.name} on {used.samples} samples of {used.name}, {ablation.recipe} by component"
    notes = [
        "one component quantized, the others as in the original; PyTorch in float32",
        "mean KLD: KL(original || quantized) per token; share: of the sum over components",
        INTERVAL_NOTE,
    ]
    return Table(title, list(ablation.components), rows, notes)


def _group_rows(group: str, components: Mapping[str, ComponentResult]) -> list[Row]:
    found = {name: result.differences[group] for name, result in components.items()}
    ratios, divergences = zip(*((one.perplexity_ratio, one.kl_divergence) for one in found.values()), strict=True)
    single = [one.kl_divergence.value for name, one in found.items() if name != ALL_COMPONENTS]
    total = sum(single) or math.nan
    return [
        (f"perplexity, {GROUP_LABELS[group]}, change, %", ratio_cells(ratios)),
        ("  mean KLD, nats", nats_cells(divergences)),
        ("  share, %", [*(f"{value / total * 100:.1f}" for value in single), ""]),
    ]


def _megabytes(nbytes: int) -> str:
    return format_megabytes(nbytes).removesuffix(" MB")
