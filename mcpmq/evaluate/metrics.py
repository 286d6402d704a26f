"""Metrics of a model, and differences between two models, by group of samples, from per-token results."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.bootstrap import bootstrap_mean, bootstrap_quantile
from mcpmq.evaluate.schema import (
    GROUPS,
    Change,
    Difference,
    Estimate,
    GroupResult,
    SampleMetrics,
    VocabularyDifference,
)

UNKNOWN = Estimate(value=math.nan, standard_error=math.nan, low=math.nan, high=math.nan)  # of no sample
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
    same = [pair for pair in pairs if pair[1].has_original_tokens]
    return {group: _difference([pair for pair in same if pair[0].group == group], name) for group in _groups(others)}


def vocabulary_differences(
    others: Sequence[SampleMetrics], samples: Sequence[SampleMetrics], name: str
) -> dict[str, VocabularyDifference]:
    """Compute, by group, the differences of a trimmed model from the original, `others`, by character.

    Raises:
        ArtifactError: the samples differ.
    """
    pairs = _pair_samples(others, samples)
    groups = {group: [pair for pair in pairs if pair[0].group == group] for group in _groups(others)}
    return {group: _vocabulary_difference(found, name) for group, found in groups.items()}


def _vocabulary_difference(pairs: SamplePairs, name: str) -> VocabularyDifference:
    same = [after.compared[name] for _, after in pairs if name in after.compared]
    before, after = ([_character_losses(pair[number], pair[1]) for pair in pairs] for number in (0, 1))
    increases = [_increases(*one) for one in zip(before, after, strict=True)]
    return VocabularyDifference(
        samples=len(pairs),
        same_tokens=len(same),
        answer_tokens=sum(len(one.losses) for _, one in pairs),
        original_answer_tokens=sum(len(one.losses) for one, _ in pairs),
        removed_probability=_mean([one.removed_probability for one in same]),
        original_character_perplexity=bootstrap_mean(before).exponential(),
        character_perplexity=bootstrap_mean(after).exponential(),
        character_perplexity_ratio=bootstrap_mean(increases).exponential(),
    )


def _character_losses(sample: SampleMetrics, trimmed: SampleMetrics) -> list[float]:
    """Return the mean loss of a character, once for every character of the answers."""
    assert trimmed.characters is not None
    return [math.fsum(sample.losses) / trimmed.characters] * trimmed.characters


def _mean(clusters: Sequence[Sequence[float]]) -> Estimate:
    return bootstrap_mean(clusters) if clusters else UNKNOWN


def changes(earlier: Sequence[SampleMetrics], samples: Sequence[SampleMetrics], name: str) -> dict[str, Change]:
    """Compute, by group, the changes between two measurements that were compared with the reference model `name`.

    Raises:
        ArtifactError: the samples differ, or one measurement was not compared with the reference model.
    """
    pairs = _pair_samples(earlier, samples)
    _check_compared(earlier, name)
    _check_compared(samples, name)
    same = list(filter(_have_original_tokens, pairs))
    return {group: _change([pair for pair in same if pair[0].group == group], name) for group in _groups(earlier)}


def _pair_samples(others: Sequence[SampleMetrics], samples: Sequence[SampleMetrics]) -> SamplePairs:
    same = [one.id for one in others] == [one.id for one in samples]
    pairs = [pair for pair in zip(others, samples, strict=False) if _have_original_tokens(pair)]
    if not same or any(len(one.losses) != len(two.losses) for one, two in pairs):
        raise ArtifactError("the two measurements have different samples", "evaluate both on the same set")
    return list(zip(others, samples, strict=True))


def _have_original_tokens(pair: tuple[SampleMetrics, SampleMetrics]) -> bool:
    return all(one.has_original_tokens for one in pair)


def _check_compared(samples: Sequence[SampleMetrics], name: str) -> None:
    if any(name not in one.compared for one in samples if one.has_original_tokens):
        raise ArtifactError(f"the measurement was not compared with `{name}`", "measure again with `mcpmq evaluate`")


def _difference(pairs: SamplePairs, name: str) -> Difference:
    if not pairs:
        unknown: dict[str, Any] = dict.fromkeys(Difference.model_fields, UNKNOWN)
        return Difference(**{**unknown, "kl_divergence_largest": math.nan})
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
    if not pairs:
        return Change(**dict.fromkeys(Change.model_fields, UNKNOWN))
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
