"""Metrics of a model, and differences between two models, by group of samples, from per-token results."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.bootstrap import bootstrap_mean, bootstrap_quantile
from mcpmq.evaluate.schema import GROUPS, Change, Difference, Estimate, GroupResult, SampleMetrics

TAIL_QUANTILE = 0.99  # of the KL divergence, reported besides the mean
SamplePairs: TypeAlias = Sequence[tuple[SampleMetrics, SampleMetrics]]


def group_results(samples: Sequence[SampleMetrics]) -> dict[str, GroupResult]:
    """Compute the results of every group that has samples."""
    return {group: _result([one for one in samples if one.group == group]) for group in _groups(samples)}


def _groups(samples: Iterable[SampleMetrics]) -> list[str]:
    return sorted({sample.group for sample in samples}, key=GROUPS.index)


def _result(samples: Sequence[SampleMetrics]) -> GroupResult:
    loss = bootstrap_mean([one.losses for one in samples])
    return GroupResult(
        samples=len(samples),
        tokens=sum(len(one.losses) for one in samples),
        loss=loss,
        perplexity=loss.exponential(),
        top_1_accuracy=bootstrap_mean([one.correct for one in samples]),
        exact_match=bootstrap_mean([[all(one.correct)] for one in samples]),
    )


def differences(others: Sequence[SampleMetrics], samples: Sequence[SampleMetrics], name: str) -> dict[str, Difference]:
    """Compute, by group, the differences of `samples` from `others`, the samples of the reference model `name`.

    Raises:
        ArtifactError: the samples differ, or `samples` were not compared with the reference model.
    """
    pairs = _pair_samples(others, samples)
    _check_compared(samples, name)
    return {group: _difference([pair for pair in pairs if pair[0].group == group], name) for group in _groups(others)}


def changes(earlier: Sequence[SampleMetrics], samples: Sequence[SampleMetrics], name: str) -> dict[str, Change]:
    """Compute, by group, the changes between two measurements that were compared with the reference model `name`.

    Raises:
        ArtifactError: the samples differ, or one measurement was not compared with the reference model.
    """
    pairs = _pair_samples(earlier, samples)
    _check_compared(earlier, name)
    _check_compared(samples, name)
    return {group: _change([pair for pair in pairs if pair[0].group == group], name) for group in _groups(earlier)}


def _pair_samples(others: Sequence[SampleMetrics], samples: Sequence[SampleMetrics]) -> SamplePairs:
    if [(one.id, len(one.losses)) for one in others] != [(one.id, len(one.losses)) for one in samples]:
        raise ArtifactError("the two measurements have different samples", "evaluate both on the same set")
    return list(zip(others, samples, strict=True))


def _check_compared(samples: Sequence[SampleMetrics], name: str) -> None:
    if any(name not in one.compared for one in samples):
        raise ArtifactError(f"the measurement was not compared with `{name}`", "measure again with `mcpmq evaluate`")


def _difference(pairs: SamplePairs, name: str) -> Difference:
    compared = [after.compared[name] for _, after in pairs]
    divergences, matches = [one.kl_divergences for one in compared], [one.top1_match for one in compared]
    increase = _loss_increase(pairs)
    return Difference(
        loss_increase=increase,
        perplexity_ratio=increase.exponential(),
        kl_divergence=bootstrap_mean(divergences),
        kl_divergence_99th_percentile=bootstrap_quantile(divergences, TAIL_QUANTILE),
        kl_divergence_largest=max(map(max, divergences)),
        top_1_agreement=bootstrap_mean(matches),
        probability_change=_probability_change(pairs),
        greedy_agreement=bootstrap_mean([[all(one)] for one in matches]),
        exact_match_change=_exact_match_change(pairs),
    )


def _change(pairs: SamplePairs, name: str) -> Change:
    compared = [(before.compared[name], after.compared[name]) for before, after in pairs]
    return Change(
        perplexity_ratio=_loss_increase(pairs).exponential(),
        kl_divergence_increase=bootstrap_mean([_increases(b.kl_divergences, a.kl_divergences) for b, a in compared]),
        top_1_agreement_change=bootstrap_mean([_increases(b.top1_match, a.top1_match) for b, a in compared]),
        probability_change=_probability_change(pairs),
        exact_match_change=_exact_match_change(pairs),
    )


def _loss_increase(pairs: SamplePairs) -> Estimate:
    return bootstrap_mean([_increases(before.losses, after.losses) for before, after in pairs])


def _probability_change(pairs: SamplePairs) -> Estimate:
    probabilities = [([math.exp(-loss) for loss in one.losses] for one in pair) for pair in pairs]
    return bootstrap_mean([_increases(before, after) for before, after in probabilities])


def _exact_match_change(pairs: SamplePairs) -> Estimate:
    return bootstrap_mean([_increases([all(before.correct)], [all(after.correct)]) for before, after in pairs])


def _increases(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(before, after, strict=True)]
