"""Metrics of a quantized language model against the original, in the multimodal forward pass, on held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.dataset import SampleSet
from mcpmq.evaluate import NONSQUARE, Estimate
from mcpmq.evaluate.bootstrap import bootstrap_mean
from mcpmq.families.inputs import Inputs

Values = list[list[float]]  # a value for every answer token of every sample


@dataclass(frozen=True, slots=True)
class TokenDifferences:
    """Differences of one model from the original for every answer token, by sample."""

    kl_divergence: Values  # KL(original || model) in nats
    top1_match: Values  # 1 if the most probable token is the same, else 0
    loss_increase: Values  # of the true token, in nats


def compare_logprobs(before: Sequence[Tensor], after: Sequence[Tensor], inputs: Sequence[Inputs]) -> TokenDifferences:
    """Compare log-probabilities [answer tokens, vocabulary] of two models on the same samples."""
    divergence, agreement, loss = [], [], []
    for p, q, sample in zip(before, after, inputs, strict=True):
        truth = torch.from_numpy(sample.tokens[sample.answer_start :])[:, None]
        divergence.append((p.exp() * (p - q)).sum(-1).tolist())
        agreement.append((p.argmax(-1) == q.argmax(-1)).double().tolist())
        loss.append((p - q).gather(-1, truth)[:, 0].tolist())
    return TokenDifferences(divergence, agreement, loss)


def sample_groups(samples: SampleSet) -> list[str]:
    """Return the group of every sample as `mcpmq evaluate` assigns it: image, text or nonsquare."""
    return [NONSQUARE if NONSQUARE in one.tags else "image" if one.image else "text" for one in samples]


def summarize(differences: TokenDifferences, baseline: TokenDifferences, chosen: Sequence[bool]) -> dict[str, Estimate]:
    """Return means over the answer tokens of the chosen samples; bootstrap resamples draw whole samples.

    `kl_divergence_increase` is the difference of the KL divergence from that of the baseline, paired by token.
    """

    def mean(values: Values) -> Estimate:
        return bootstrap_mean([one for one, include in zip(values, chosen, strict=True) if include])

    pairs = zip(differences.kl_divergence, baseline.kl_divergence, strict=True)
    return {
        "kl_divergence": mean(differences.kl_divergence),
        "kl_divergence_increase": mean([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]),
        "top_1_agreement": mean(differences.top1_match),
        "perplexity_ratio": mean(differences.loss_increase).exponential(),
    }
