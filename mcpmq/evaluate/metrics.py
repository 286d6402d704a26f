"""What is said of a model and of the difference between two: from figures of every answer token, by kind of sample."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.bootstrap import Estimate, mean_of, quantile_of
from mcpmq.evaluate.record import Record

NONSQUARE = "nonsquare"  # tag of images that llama.cpp resizes in another way than the published code
KINDS = ("image", NONSQUARE, "text")
FAR = 0.99  # share of tokens with a lower divergence than the one that is reported beside the mean


class ComparedTokens(Record):
    """Of every answer token of one sample: how far two models are apart."""

    kl_divergences: tuple[float, ...]  # KL(other || this) over the vocabulary, in nats
    same_top: tuple[bool, ...]  # the likeliest token is the same


class SampleFigures(Record):
    """Of every answer token of one sample."""

    id: str
    kind: str  # one of KINDS
    losses: tuple[float, ...]  # -log of its probability
    right: tuple[bool, ...]  # it is the likeliest
    likeliest: tuple[int, ...]  # the token that greedy decoding takes there, given the answer so far
    compared: dict[str, ComparedTokens]  # with the model of that name


class KindResult(Record):
    """All samples of one kind together."""

    samples: int
    tokens: int  # of the answers
    loss: Estimate
    perplexity: Estimate
    top_1_accuracy: Estimate  # share of tokens that are the likeliest, given the answer before them
    exact_match: Estimate  # share of answers that greedy decoding gives word for word, end of turn included


class Difference(Record):
    """What of a model's answers of one kind is not as another model has it, on the same pixels and tokens."""

    loss_increase: Estimate  # mean over tokens, in nats
    perplexity_ratio: Estimate  # 1.01 is a rise by 1 %
    kl_divergence: Estimate  # mean over tokens of KL(other || this), in nats
    kl_divergence_99th_percentile: Estimate  # of the tokens, in nats
    kl_divergence_largest: float  # of all tokens, in nats; of a largest value no interval can be known
    top_1_agreement: Estimate  # share of tokens for which both take the same one for the likeliest
    probability_change: Estimate  # mean over tokens of how much likelier the right one became
    greedy_agreement: Estimate  # share of answers with the same likeliest token everywhere, given the answer so far
    exact_match_change: Estimate  # of the share of answers that greedy decoding gives word for word


class Change(Record):
    """What of an artifact's answers of one kind is not as it was in an earlier artifact, token by token."""

    perplexity_ratio: Estimate  # 1.01 is a rise by 1 %
    kl_divergence_increase: Estimate  # of the mean over tokens, in nats
    top_1_agreement_change: Estimate  # of the share of tokens with the original's likeliest token
    probability_change: Estimate  # mean over tokens of how much likelier the right one became
    exact_match_change: Estimate  # of the share of answers that greedy decoding gives word for word


def by_kind(samples: Sequence[SampleFigures]) -> dict[str, KindResult]:
    """Results of every kind of sample that there is."""
    return {kind: _result([one for one in samples if one.kind == kind]) for kind in _kinds(samples)}


def _kinds(samples: Iterable[SampleFigures]) -> list[str]:
    return sorted({sample.kind for sample in samples}, key=KINDS.index)


def _result(samples: Sequence[SampleFigures]) -> KindResult:
    loss = mean_of([one.losses for one in samples])
    return KindResult(
        samples=len(samples),
        tokens=sum(len(one.losses) for one in samples),
        loss=loss,
        perplexity=loss.exponential(),
        top_1_accuracy=mean_of([one.right for one in samples]),
        exact_match=mean_of([[all(one.right)] for one in samples]),
    )


def differences(others: Sequence[SampleFigures], samples: Sequence[SampleFigures], name: str) -> dict[str, Difference]:
    """By kind, what of `samples` is not as it is in `others`, the figures of the model of that name.

    Raises:
        ArtifactError: they were measured on different samples, or without log-probabilities to compare.
    """
    pairs = _same_samples(others, samples)
    _refuse_uncompared(samples, name)
    return {kind: _difference([pair for pair in pairs if pair[0].kind == kind], name) for kind in _kinds(others)}


def changes(earlier: Sequence[SampleFigures], samples: Sequence[SampleFigures], name: str) -> dict[str, Change]:
    """By kind, what changed between two measurements that were both compared with the model of that name.

    Raises:
        ArtifactError: they were measured on different samples, or without log-probabilities to compare.
    """
    pairs = _same_samples(earlier, samples)
    _refuse_uncompared(earlier, name)
    _refuse_uncompared(samples, name)
    return {kind: _change([pair for pair in pairs if pair[0].kind == kind], name) for kind in _kinds(earlier)}


Pairs: TypeAlias = Sequence[tuple[SampleFigures, SampleFigures]]


def _same_samples(others: Sequence[SampleFigures], samples: Sequence[SampleFigures]) -> Pairs:
    if [(one.id, len(one.losses)) for one in others] != [(one.id, len(one.losses)) for one in samples]:
        raise ArtifactError("the two measurements are of different samples", "measure both on the same set")
    return list(zip(others, samples, strict=True))


def _refuse_uncompared(samples: Sequence[SampleFigures], name: str) -> None:
    if any(name not in one.compared for one in samples):
        raise ArtifactError(f"the measurement was not compared with `{name}`", "measure again with `mcpmq evaluate`")


def _difference(pairs: Pairs, name: str) -> Difference:
    compared = [after.compared[name] for _, after in pairs]
    divergences, same = [one.kl_divergences for one in compared], [one.same_top for one in compared]
    increase = _loss_increase(pairs)
    return Difference(
        loss_increase=increase,
        perplexity_ratio=increase.exponential(),
        kl_divergence=mean_of(divergences),
        kl_divergence_99th_percentile=quantile_of(divergences, FAR),
        kl_divergence_largest=max(map(max, divergences)),
        top_1_agreement=mean_of(same),
        probability_change=_probability_change(pairs),
        greedy_agreement=mean_of([[all(one)] for one in same]),
        exact_match_change=_exact_match_change(pairs),
    )


def _change(pairs: Pairs, name: str) -> Change:
    compared = [(before.compared[name], after.compared[name]) for before, after in pairs]
    return Change(
        perplexity_ratio=_loss_increase(pairs).exponential(),
        kl_divergence_increase=mean_of([_less(b.kl_divergences, a.kl_divergences) for b, a in compared]),
        top_1_agreement_change=mean_of([_less(b.same_top, a.same_top) for b, a in compared]),
        probability_change=_probability_change(pairs),
        exact_match_change=_exact_match_change(pairs),
    )


def _loss_increase(pairs: Pairs) -> Estimate:
    return mean_of([_less(before.losses, after.losses) for before, after in pairs])


def _probability_change(pairs: Pairs) -> Estimate:
    chances = [([math.exp(-loss) for loss in one.losses] for one in pair) for pair in pairs]
    return mean_of([_less(before, after) for before, after in chances])


def _exact_match_change(pairs: Pairs) -> Estimate:
    return mean_of([_less([all(before.right)], [all(after.right)]) for before, after in pairs])


def _less(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(before, after, strict=True)]
