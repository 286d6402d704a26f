"""How much the answers of a model change when one block of it is damaged: the measure that blocks are compared by.

Nothing is differentiated: the damaged model runs, and its answers are compared with those of the original by their
Kullback-Leibler divergence, token by token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from mcpmq.calibrate.forward import read_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.execution.torch_model import Stored
from mcpmq.families.family import Inputs, TensorSpec
from mcpmq.mixed_precision.layer_error import TRIED
from mcpmq.rounding import ROUNDERS
from mcpmq.runners.token_metrics import TokenJudge
from mcpmq.runners.torch import TorchRunner, open_runner
from mcpmq.system.progress import Progress

MOST_LAYERS = 10  # of a component that are measured; those between are reckoned from their neighbours
LEAST = 1e-12  # nats: less is rounding of floats
ORIGINAL = "original"


def sensitivities(
    checkpoint: Checkpoint,
    blocks: Mapping[str, Sequence[TensorSpec]],
    samples: Sequence[Sample],
    threads: int,
    progress: Progress,
) -> dict[str, float]:
    """For every block, the mean divergence of an answer token when all of its weights are on TRIED, in nats.

    Every block means one pass of the samples through the whole model. Where a component has many layers, some evenly
    spread ones are measured, and the logarithm of the divergence is interpolated between.
    """
    processor = checkpoint.family.processor(checkpoint.path)
    inputs = read_samples(processor, samples, progress)
    runner = open_runner(checkpoint.path, threads)
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        kept = Path(folder) / ORIGINAL
        _run(runner, inputs, TokenJudge(inputs, kept, {}))
        measured = {}
        for name in progress(_measured(list(blocks)), "damaging one block at a time"):
            judge = TokenJudge(inputs, None, {ORIGINAL: kept})
            measured[name] = max(LEAST, _run(_damaged(runner, blocks[name]), inputs, judge))
    return {name: measured.get(name) or _between(name, measured) for name in blocks}


def _run(runner: TorchRunner, inputs: Sequence[Inputs], judge: TokenJudge) -> float:
    """The mean divergence of all answer tokens, of those that were compared."""
    compared = [found for judged in runner.run(inputs, judge) for found in judged.compared.values()]
    judge.close()
    divergences = [one for found in compared for one in found.kl_divergences]
    return sum(divergences) / max(1, len(divergences))


def _damaged(runner: TorchRunner, specs: Sequence[TensorSpec]) -> TorchRunner:
    """The same with some weights on TRIED."""
    names, weights = {spec.name for spec in specs}, runner.weights

    def read(spec: TensorSpec) -> Stored:
        stored = weights.read(spec)
        return ROUNDERS["rtn"](stored, TRIED, None) if isinstance(stored, Tensor) and spec.name in names else stored

    kept = {**weights.kept, **{spec.name: read(spec) for spec in specs}} if weights.kept else {}
    return replace(runner, weights=replace(weights, read=read, kept=kept))


def _measured(names: Sequence[str]) -> list[str]:
    """All but some of the layers of a component that has many."""
    chosen = []
    for layers in _by_component(names):
        count = min(len(layers), MOST_LAYERS)
        spread = {round(index * (len(layers) - 1) / max(1, count - 1)) for index in range(count)}
        chosen += [layers[index] for index in sorted(spread)]
    return chosen


def _by_component(names: Sequence[str]) -> Iterator[list[str]]:
    components = dict.fromkeys(name.partition(".layers.")[0] for name in names)
    for component in components:
        yield [name for name in names if name.partition(".layers.")[0] == component]


def _between(name: str, measured: Mapping[str, float]) -> float:
    component, _, number = name.partition(".layers.")
    prefix = f"{component}.layers."
    others = {int(one.removeprefix(prefix)): value for one, value in measured.items() if one.startswith(prefix)}
    below, above = max(one for one in others if one < int(number)), min(one for one in others if one > int(number))
    part = (int(number) - below) / (above - below)
    return exp((1 - part) * log(others[below]) + part * log(others[above]))
