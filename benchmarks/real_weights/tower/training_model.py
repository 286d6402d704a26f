"""The vision encoder, its probe, and the losses of training: labels of images, and answers of the language model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real_weights.smollm2 import HIDDEN
from benchmarks.real_weights.tower.batches import Batch
from benchmarks.real_weights.tower.encoder import WIDTH, VisionEncoder, row_by_row
from benchmarks.real_weights.tower.language import Attention, LanguageModel
from calibration.scene_labels import REGIONS
from calibration.scene_probe import SceneProbe, weighted_sum

WORD_SCALE = 20.0  # of cosines, so that a softmax can be sharp
ARRAYS = ("pixels", "ids", "branch", "positions", "places", "targets", "owners")


class TrainingModel(nn.Module):
    """The encoder, and a probe of its states and features, which is discarded after training.

    Beside the labels of `SceneProbe`, features predict the place of their region, by which answers name objects. They
    are similar to the embeddings of the words that describe their region, and as long, as inputs of the language model
    are.
    """

    words: Tensor
    word_norm: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.encoder, self.probe = VisionEncoder(HIDDEN), SceneProbe(WIDTH, HIDDEN)
        self.place_head = nn.Linear(HIDDEN, REGIONS**2)
        self.register_buffer("words", functional.normalize(words, dim=-1), persistent=False)
        self.register_buffer("word_norm", words.norm(dim=-1).mean(), persistent=False)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 states and features of a bf16 forward."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            states, features = self.encoder(pixels)
        return states.float(), features.float()

    def probe_losses(self, states: Tensor, features: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of every kind of label."""
        parts: dict[str, Tensor] = self.probe(row_by_row(states), features, labels)
        places = self.place_head(features)
        truth = torch.arange(REGIONS**2, device=features.device).expand(places.shape[:2])
        parts["places"] = functional.cross_entropy(places.flatten(0, 1), truth.flatten())
        parts["lengths"] = (features.norm(dim=-1) / self.word_norm).log().square().mean()
        return parts | {"words": self._word_loss(features, labels["words"])}

    def _word_loss(self, features: Tensor, words: Tensor) -> Tensor:
        scores = WORD_SCALE * functional.normalize(features, dim=-1) @ self.words.T
        described = words.sum(-1)
        losses = -(words * scores.log_softmax(-1)).sum(-1) / described.clamp(min=1)
        return losses.sum() / described.count_nonzero().clamp(min=1)


def probe_sum(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of the losses of the probe."""
    return weighted_sum(parts) + 0.5 * parts["places"] + 0.2 * parts["lengths"] + parts["words"]


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Return the arrays and labels of a batch as tensors."""
    arrays = {name: getattr(batch, name) for name in ARRAYS} | batch.labels
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    if device.type == "cuda":
        return {name: value.pin_memory().to(device, non_blocking=True) for name, value in tensors.items()}
    return tensors


def answer_logits(language: LanguageModel, tensors: Mapping[str, Tensor], features: Tensor, image_token: int) -> Tensor:
    """Return the logits before the tokens of all answers, float32 [answer tokens, vocabulary]."""
    attention = Attention.of_batch(tensors["positions"], tensors["branch"], language.dtype)
    embedded = language.embed(tensors["ids"], features, image_token)
    return language.logits(embedded, attention, tensors["places"])


@dataclass(slots=True)
class Score:
    """Sums over answers: losses and correct predictions of tokens, and answers with only correct ones."""

    tokens: int = 0
    loss: float = 0.0
    correct_tokens: int = 0
    answers: int = 0
    exact: int = 0

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Add one answer."""
        self.tokens += len(losses)
        self.loss += float(losses.sum())
        self.correct_tokens += int(correct.sum())
        self.answers += 1
        self.exact += bool(correct.all())

    def summary(self) -> dict[str, float]:
        """Return the means, by the names of a result."""
        return {
            "answers": self.answers,
            "perplexity": round(float(np.exp(self.loss / self.tokens)), 4),
            "same_tokens": round(self.correct_tokens / self.tokens, 4),
            "exact_match": round(self.exact / self.answers, 4),
        }


def score_answers(logits: Tensor, batch: Batch, scores: dict[str, Score]) -> None:
    """Add the answers of a batch to the score of their skill."""
    targets = torch.from_numpy(batch.targets).to(logits.device)
    losses = functional.cross_entropy(logits, targets, reduction="none").cpu()
    correct = (logits.argmax(-1) == targets).cpu()
    counts = np.bincount(batch.owners).tolist()
    for skill, *answer in zip(batch.skills, losses.split(counts), correct.split(counts), strict=True):
        scores.setdefault(skill, Score()).add(*answer)
