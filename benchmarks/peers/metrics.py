"""How far a quantized language model is from the original, inside the multimodal forward pass, on held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.dataset import CalibrationSet
from mcpmq.evaluate import NONSQUARE, Estimate
from mcpmq.evaluate.bootstrap import mean_of
from mcpmq.families.family import Inputs

Values = list[list[float]]  # a value for every answer token of every sample


@dataclass(frozen=True, slots=True)
class Distance:
    """What every answer token says of one model against the original, by sample."""

    divergence: Values  # Kullback-Leibler, of the model's distribution from the original's, in nats
    agreement: Values  # 1 where the most probable token is the same, else 0
    loss: Values  # how much more the true token costs, in nats


def distance(before: Sequence[Tensor], after: Sequence[Tensor], inputs: Sequence[Inputs]) -> Distance:
    """Compare log-probabilities [answer tokens, vocabulary] of two models on the same samples."""
    divergence, agreement, loss = [], [], []
    for one, other, sample in zip(before, after, inputs, strict=True):
        truth = torch.from_numpy(sample.tokens[sample.answer_start :])[:, None]
        divergence.append((one.exp() * (one - other)).sum(-1).tolist())
        agreement.append((one.argmax(-1) == other.argmax(-1)).double().tolist())
        loss.append((one - other).gather(-1, truth)[:, 0].tolist())
    return Distance(divergence, agreement, loss)


def kinds_of(samples: CalibrationSet) -> list[str]:
    """image, text or nonsquare, as `evaluate` tells them apart."""
    return [NONSQUARE if NONSQUARE in one.tags else "image" if one.image else "text" for one in samples]


def estimates(found: Distance, ours: Distance, chosen: Sequence[bool]) -> dict[str, Estimate]:
    """Means over the answer tokens of the chosen samples, all tokens of a sample drawn together.

    `excess` is how much more divergence there is than ours, paired by token.
    """

    def mean(values: Values) -> Estimate:
        return mean_of([one for one, wanted in zip(values, chosen, strict=True) if wanted])

    pairs = zip(found.divergence, ours.divergence, strict=True)
    return {
        "kl_divergence": mean(found.divergence),
        "excess": mean([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]),
        "top_1_agreement": mean(found.agreement),
        "perplexity_ratio": mean(found.loss).exponential(),
    }
