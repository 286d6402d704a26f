"""Measure the loss of limits of images and of trimmed vocabularies, of the unquantized model on calibration samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.compression_tables import VocabularyTable
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
from mcpmq.execution.device import resolve_device
from mcpmq.families.encoding import encode_sample
from mcpmq.families.inputs import Inputs
from mcpmq.mixed_precision.sensitivity import ORIGINAL, mean_kld
from mcpmq.mixed_precision.structure import Candidate, Candidates
from mcpmq.runners.logprobs import LogprobFile
from mcpmq.runners.token_metrics import TokenMetrics, restricted
from mcpmq.runners.torch import TorchRunner, open_checkpoint
from mcpmq.system.progress import Progress
from mcpmq.system.temporary_folder import temporary_folder
from mcpmq.vocabulary import trim_vocabulary

MAX_SAMPLES = 24  # measured for each candidate, evenly spread
MIN_PROBABILITY = 1e-12  # of kept tokens; smaller values are rounding errors


@dataclass(frozen=True, slots=True)
class Cost:
    """The loss of a candidate in nats for each answer token of the set.

    `share` is that of the answer tokens whose loss the candidate can change, of which `answer_tokens` were measured.
    """

    kl_divergence: float
    share: float
    samples: int
    answer_tokens: int
    removed_probability: float | None = None  # a mean, of the tokens that a vocabulary does not have

    def __str__(self) -> str:
        removed = "" if self.removed_probability is None else f", removed probability {self.removed_probability:.4f}"
        return (
            f"mean KLD {self.kl_divergence:.4g} nats{removed} ({self.answer_tokens:,} answer tokens of {self.samples}"
            f" samples, for {self.share:.0%} of the set)"
        )


@dataclass(frozen=True, slots=True)
class CostMeter:
    """A checkpoint and its calibration set, with the resources of measurements."""

    checkpoint: Checkpoint
    calibration: SampleSet
    threads: int
    progress: Progress
    device: str | None = None

    def runner(self, checkpoint: Checkpoint) -> TorchRunner:
        """Return the runner of the checkpoint or of a view."""
        return open_checkpoint(checkpoint, self.threads, resolve_device(self.device, checkpoint.nbytes))

    def costs(self, candidates: Candidates) -> dict[str, Cost]:
        """Return the cost of every candidate, by the name of its setting.

        Raises:
            DatasetError: limits change no image of the set, or the set is too small to hold out a fifth.
        """
        images = [one for one in candidates.values() if one.part == "images"]
        vocabularies = [one for one in candidates.values() if one.part == "vocabulary"]
        costs = self._image_costs(images) if images else {}
        return costs | (self._vocabulary_costs(vocabularies) if vocabularies else {})

    def _image_costs(self, candidates: Sequence[Candidate]) -> dict[str, Cost]:
        changed, total = _changed_samples(self, candidates)
        measured = {name: samples[:: max(1, -(-len(samples) // MAX_SAMPLES))] for name, samples in changed.items()}
        by_id = {one.sample.id: one.sample for samples in measured.values() for one in samples}
        processor = self.checkpoint.family.open_processor(self.checkpoint.path)
        inputs = [encode_sample(processor, sample) for sample in self.progress([*by_id.values()], "encoding samples")]
        costs = {}
        with temporary_folder() as folder:
            original = folder / ORIGINAL
            mean_kld(self.runner(self.checkpoint), inputs, TokenMetrics(inputs, original, {}))
            for one in self.progress(candidates, "measuring limits of images"):
                samples = measured[one.name]
                kld = self._image_divergence(one, [sample.sample for sample in samples], inputs, original)
                share = sum(sample.tokens for sample in changed[one.name]) / total
                costs[one.name] = Cost(share * kld, share, len(samples), sum(sample.tokens for sample in samples))
        return costs

    def _image_divergence(
        self, candidate: Candidate, samples: Sequence[Sample], layout: Sequence[Inputs], original: Path
    ) -> float:
        """Return the mean KLD of samples with other limits; `layout` are all samples of the file of the original."""
        processor = candidate.view.family.open_processor(candidate.view.path)
        inputs = [encode_sample(processor, sample) for sample in samples]
        metrics = TokenMetrics(layout, None, {ORIGINAL: original})
        return mean_kld(self.runner(candidate.view), inputs, metrics)

    def _vocabulary_costs(self, candidates: Sequence[Candidate]) -> dict[str, Cost]:
        """Measure on held-out samples, because a vocabulary can have all tokens of the calibration set."""
        fitted, held_out = self.calibration.split_holdout()
        samples, costs = held_out.spread(MAX_SAMPLES).samples, {}
        processor = self.checkpoint.family.open_processor(self.checkpoint.path)
        inputs = [encode_sample(processor, sample) for sample in self.progress(samples, "encoding samples")]
        with temporary_folder() as folder:
            original = folder / ORIGINAL
            metrics = TokenMetrics(inputs, original, {})
            losses = [sum(found.losses) for found in self.runner(self.checkpoint).run(inputs, metrics)]
            metrics.close()
            for one in self.progress(candidates, "measuring vocabularies"):
                assert isinstance(one.table, VocabularyTable)
                with trim_vocabulary(self.checkpoint, one.table, fitted, self.progress) as view:
                    costs[one.name] = self._vocabulary_cost(view, samples, inputs, losses, original)
        return costs

    def _vocabulary_cost(
        self, view: Checkpoint, samples: Sequence[Sample], inputs: Sequence[Inputs], losses: list[float], file: Path
    ) -> Cost:
        """Return -log of the kept probability, and for samples with removed tokens the increase of the loss.

        Without quantization, -log of the kept probability is KL(trimmed || original), and the KLD over kept tokens 0.
        """
        kept = view.vocabulary
        assert kept is not None
        is_kept = [bool((kept.new_ids[one.tokens] >= 0).all()) for one in inputs]
        probabilities = _kept_probabilities(file, inputs, is_kept, kept)
        others = [sample for sample, same in zip(samples, is_kept, strict=True) if not same]
        before = [loss for loss, same in zip(losses, is_kept, strict=True) if not same]
        increase = sum(max(0.0, now - then) for now, then in zip(self._losses(view, others), before, strict=True))
        tokens = sum(len(one.measured) for one in inputs)
        divergence = (sum(-log(one) for one in probabilities) + increase) / tokens
        removed = 1 - sum(probabilities) / len(probabilities) if probabilities else 1.0
        return Cost(max(0.0, divergence), 1.0, len(samples), tokens, max(0.0, removed))

    def _losses(self, view: Checkpoint, samples: Sequence[Sample]) -> list[float]:
        """Return the loss of every answer in the tokens of a view."""
        if not samples:
            return []
        processor = view.family.open_processor(view.path)
        inputs = [encode_sample(processor, sample) for sample in samples]
        metrics = TokenMetrics(inputs, None, {})
        found = [sum(results.losses) for results in self.runner(view).run(inputs, metrics)]
        metrics.close()
        return found


@dataclass(frozen=True, slots=True)
class _Changed:
    """A sample whose images change, and the number of its answer tokens."""

    sample: Sample
    tokens: int


def _changed_samples(meter: CostMeter, candidates: Sequence[Candidate]) -> tuple[Mapping[str, list[_Changed]], int]:
    """Return the samples that limits change, by candidate, and the number of all answer tokens.

    Raises:
        DatasetError: a candidate changes none.
    """
    changed, total = {one.name: list[_Changed]() for one in candidates}, 0
    original = meter.checkpoint.family.open_processor(meter.checkpoint.path)
    processors = {one.name: one.view.family.open_processor(one.view.path) for one in candidates}
    for sample in meter.progress(meter.calibration.samples, "comparing images"):
        inputs = encode_sample(original, sample)
        total += len(inputs.measured)
        for name, processor in processors.items() if sample.has_vision else ():
            if _layout(encode_sample(processor, sample)) != _layout(inputs):
                changed[name].append(_Changed(sample, len(inputs.measured)))
    if unchanged := [name for name, samples in changed.items() if not samples]:
        raise DatasetError(
            f"`{unchanged[0]}` changes none of the {len(meter.calibration)} samples of `{meter.calibration.name}`, so"
            " its loss cannot be measured",
            "add larger images to the calibration set, or leave out this limit",
        )
    return changed, total


def _layout(inputs: Inputs) -> tuple[int, list[tuple[int, ...]]]:
    return len(inputs.tokens), [part.shape for part in inputs.slices]


def _kept_probabilities(
    file: Path, inputs: Sequence[Inputs], is_kept: Sequence[bool], kept: KeptVocabulary
) -> list[float]:
    """Return the probability of the kept tokens at every answer token of the samples without a removed token."""
    num_rows, ids = sum(len(one.measured) for one in inputs), kept.ids
    logprobs, row, found = LogprobFile(file, num_rows, kept.original_size), 0, list[float]()
    for sample, same in zip(inputs, is_kept, strict=True):
        rows = range(row, row + len(sample.measured))
        found += [max(MIN_PROBABILITY, restricted(logprobs.read(one)[0], ids)[1]) for one in rows if same]
        row = rows.stop
    logprobs.close()
    return found
