"""What is said of a model and of the difference between two: from figures of every answer token, by kind of sample."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.estimate import Estimate, mean_of, quantile_of
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

    loss_increase: Estimate
    perplexity_ratio: Estimate
    kl_divergence: Estimate  # mean over tokens of KL(other || this), in nats
    kl_divergence_99th_percentile: Estimate
    kl_divergence_largest: float  # of a largest value no interval can be known
    top_1_agreement: Estimate  # share of tokens for which both take the same one for the likeliest
    probability_change: Estimate  # mean over tokens of how much likelier the right one became
    greedy_agreement: Estimate  # share of answers with the same likeliest token everywhere, given the answer so far
    exact_match_change: Estimate  # of the share of answers that greedy decoding gives word for word


Values: TypeAlias = Sequence[Sequence[float]]  # of the tokens of every sample


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
    if [(one.id, len(one.losses)) for one in others] != [(one.id, len(one.losses)) for one in samples]:
        raise ArtifactError("the two measurements are of different samples", "measure both on the same set")
    if any(name not in one.compared for one in samples):
        raise ArtifactError(f"the measurement was not compared with `{name}`", "measure again with `mcpmq evaluate`")
    pairs = list(zip(others, samples, strict=True))
    return {kind: _difference([pair for pair in pairs if pair[0].kind == kind], name) for kind in _kinds(others)}


Pairs: TypeAlias = Sequence[tuple[SampleFigures, SampleFigures]]


def _difference(pairs: Pairs, name: str) -> Difference:
    compared = [after.compared[name] for _, after in pairs]
    divergences, same = [one.kl_divergences for one in compared], [one.same_top for one in compared]
    increase = mean_of(_paired(pairs, lambda before, after: after - before))
    exact = [[float(all(after.right)) - float(all(before.right))] for before, after in pairs]
    return Difference(
        loss_increase=increase,
        perplexity_ratio=increase.exponential(),
        kl_divergence=mean_of(divergences),
        kl_divergence_99th_percentile=quantile_of(divergences, FAR),
        kl_divergence_largest=max(map(max, divergences)),
        top_1_agreement=mean_of(same),
        probability_change=mean_of(_paired(pairs, lambda before, after: math.exp(-after) - math.exp(-before))),
        greedy_agreement=mean_of([[all(one)] for one in same]),
        exact_match_change=mean_of(exact),
    )


def _paired(pairs: Pairs, change: Callable[[float, float], float]) -> Values:
    return [
        [change(before, after) for before, after in zip(one.losses, other.losses, strict=True)] for one, other in pairs
    ]
