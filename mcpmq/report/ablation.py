"""What each component of a quantized model costs: the original with one component quantized at a time, in PyTorch."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import ORIGINAL, Difference, EncodedSet, Record, Settings, differences, encoded, measure_original
from mcpmq.evaluate.measure import Original, figures_of
from mcpmq.execution.torch_model import Stored
from mcpmq.families.family import TensorSpec
from mcpmq.quantized_model import Quantized
from mcpmq.report.compare import environment_of, facts_of, refuse_other_source
from mcpmq.report.report import Environment, SetFacts, SourceFacts
from mcpmq.runners.token_metrics import TokenJudge
from mcpmq.runners.torch import TorchRunner, Weights, assemble
from mcpmq.system.table import Row, Table, megabytes

SPLIT_FILE = "components.json"
TOGETHER = "all together"


class ComponentCost(Record):
    """The original with this component quantized, and nothing else."""

    schemes: tuple[str, ...]  # of its matrices and tables, the one that most weights have first
    nbytes: int
    original_nbytes: int
    differences: dict[str, Difference]  # from the original, by kind of sample


class Split(Record):
    """What quantization costs, component by component."""

    schema_version: Literal[1] = 1
    checkpoint: SourceFacts
    recipe: str
    measured_on: SetFacts
    components: dict[str, ComponentCost]  # in the order of the forward pass; last, all together
    environment: Environment

    def write(self, folder: Path) -> None:
        """Write components.json.

        Raises:
            OutputError: the folder cannot be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SPLIT_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"`{SPLIT_FILE}` cannot be written into `{folder}`: {error}") from error


def split(checkpoint: Checkpoint, quantized: Quantized, samples: CalibrationSet, settings: Settings) -> Split:
    """Measure the original, then with each component quantized alone, then with all of them.

    Raises:
        ArtifactError: the artifact was made from another checkpoint, or its files changed.
        EngineError: a loss is not finite.
    """
    refuse_other_source(checkpoint, quantized.artifact)
    quantized.artifact.verify()
    torch.set_num_threads(settings.threads)
    components = list(dict.fromkeys(step.spec.component for step in quantized.steps if step.scheme))
    if not components:
        raise ArtifactError(f"nothing in `{quantized.path}` is quantized", "measure one that is")
    with encoded(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        chosen = {**{name: frozenset({name}) for name in components}, TOGETHER: frozenset(components)}
        costs = {name: _cost(checkpoint, quantized, some, inputs, original, settings) for name, some in chosen.items()}
    return Split(
        checkpoint=SourceFacts(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256),
        recipe=str(quantized.artifact.manifest.recipe["name"]),
        measured_on=facts_of(samples, settings),
        components=costs,
        environment=environment_of(settings),
    )


def _cost(
    checkpoint: Checkpoint,
    quantized: Quantized,
    components: frozenset[str],
    inputs: EncodedSet,
    original: Original,
    settings: Settings,
) -> ComponentCost:
    steps = [step for step in quantized.steps if step.spec.component in components]
    runner = _runner(checkpoint, quantized, components)
    judge = TokenJudge(inputs.files, None, {ORIGINAL: original.log_probabilities})
    shown = settings.progress(range(len(inputs.files)), f"measuring with {' and '.join(sorted(components))} quantized")
    judged = [one for one, _ in zip(runner.run(inputs.files, judge), shown, strict=True)]
    judge.close()
    named = zip(inputs.files, inputs.kinds, judged, strict=True)
    figures = [figures_of(sample, kind, one) for sample, kind, one in named]
    sizes: Counter[str] = Counter()
    for step in steps:
        sizes[str(step.scheme)] += step.nbytes if step.scheme and step.spec.role != "other" else 0
    return ComponentCost(
        schemes=tuple(name for name, nbytes in sizes.most_common() if nbytes),
        nbytes=sum(step.nbytes for step in steps),
        original_nbytes=sum(step.source_nbytes for step in steps),
        differences=differences(original.measurement.samples, figures, ORIGINAL),
    )


def _runner(checkpoint: Checkpoint, quantized: Quantized, components: frozenset[str]) -> TorchRunner:
    """The original, with what is quantized of some components in its place."""

    def read(spec: TensorSpec) -> Stored:
        return quantized.load(spec.name) if spec.component in components else checkpoint.load(spec)

    specs = {spec.name: spec for spec in checkpoint.specs if spec.component in components}
    grids = {name: found for name in specs if (found := quantized.input_grids(name))}
    weights = Weights(checkpoint.specs, read, checkpoint.nbytes, input_grids=grids)
    weights.keep_if_there_is_room()
    return assemble(checkpoint.path, checkpoint.family, checkpoint.config, weights, ())


def table_of(split: Split) -> Table:
    """A column for every component, and one for all together."""
    costs = list(split.components.values())
    sizes = [[megabytes(size).removesuffix(" MB") for size in (one.nbytes, one.original_nbytes)] for one in costs]
    rows: list[Row] = [
        ("weights as", [", ".join(one.schemes) for one in costs]),
        ("weights, MB", [small for small, _ in sizes]),
        ("  of the original, MB", [large for _, large in sizes]),
    ]
    for kind in costs[-1].differences:
        rows += _kind_rows(kind, split.components)
    on = split.measured_on
    title = f"{split.checkpoint.name} on {on.samples} samples of {on.name}, {split.recipe} one component at a time"
    notes = [
        "one component quantized, all others as in the original; PyTorch in float32",
        "KL divergence: of the original from that, in thousandths of a nat a token; share: of the sum over components",
        "±: half of the 95 % interval; 10,000 bootstrap resamples of the samples, differences paired by token",
    ]
    return Table(title, list(split.components), rows, notes)


def _kind_rows(kind: str, components: Mapping[str, ComponentCost]) -> list[Row]:
    found = {name: cost.differences[kind] for name, cost in components.items()}
    ratios, divergences = zip(*((one.perplexity_ratio, one.kl_divergence) for one in found.values()), strict=True)
    whole = sum(one.kl_divergence.value for name, one in found.items() if name != TOGETHER) or math.nan
    shares = [f"{one.kl_divergence.value / whole * 100:.1f}" for name, one in found.items() if name != TOGETHER]
    return [
        (
            f"{kind} perplexity, change, %",
            [f"{(one.value - 1) * 100:+.2f} ±{one.half_width * 100:.2f}" for one in ratios],
        ),
        ("  KL divergence, mnat", [f"{one.value * 1000:.2f} ±{one.half_width * 1000:.2f}" for one in divergences]),
        ("  share, %", [*shares, ""]),
    ]
