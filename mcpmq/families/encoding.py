"""Encode samples with a processor, and check that all can be encoded before work starts."""

from collections.abc import Sequence

from mcpmq.dataset import Sample
from mcpmq.families.family import Inputs, Processor
from mcpmq.system.progress import Progress


def encode_sample(processor: Processor, sample: Sample) -> Inputs:
    """Encode one sample.

    Raises:
        DatasetError: the image is not valid, a text contains a control token, or the sample is too long.
        CheckpointError: the tokenizer, the chat template and config.json do not fit together.
    """
    return processor.encode(sample.id, sample.image, sample.prompt, sample.answer)


def check_samples(processor: Processor, samples: Sequence[Sample], progress: Progress) -> int:
    """Encode all samples one at a time, so that none is rejected after hours of work; return the number of tokens.

    Raises:
        DatasetError: as `encode_sample`.
        CheckpointError: likewise.
    """
    checked = progress(samples, "checking samples") if samples else ()
    return sum(len(encode_sample(processor, sample).tokens) for sample in checked)
