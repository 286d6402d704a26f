"""Encode samples with a processor, and check that all can be encoded before work starts."""

from collections.abc import Sequence
from typing import Any

from mcpmq.dataset import Sample
from mcpmq.dataset.statistics import listed, spread
from mcpmq.errors import DatasetError
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs
from mcpmq.families.tokenizer import SampleTooLongError
from mcpmq.system.progress import Progress


def encode_sample(processor: Processor, sample: Sample) -> Inputs:
    """Encode one sample.

    Raises:
        DatasetError: the image is not valid, a text contains a control token, or the sample is too long.
        CheckpointError: the tokenizer, the chat template and config.json do not fit together.
    """
    return processor.encode_turns(sample.id, sample.turns)


def check_samples(processor: Processor, samples: Sequence[Sample], progress: Progress) -> int:
    """Encode all samples one at a time, so that none is rejected after hours of work; return the number of tokens.

    Raises:
        DatasetError: as `encode_sample`.
        CheckpointError: likewise.
    """
    checked = progress(samples, "checking samples") if samples else ()
    return sum(len(encode_sample(processor, sample).tokens) for sample in checked)


def token_statistics(processor: Processor, samples: Sequence[Sample], progress: Progress) -> dict[str, Any]:
    """Return the numbers of tokens of samples, and those that the model does not accept, as JSON values.

    Raises:
        CheckpointError: the tokenizer, the chat template and config.json do not fit together.
    """
    lengths, measured, of_images = [], [], []
    too_long, rejected = list[str](), list[str]()
    for sample in progress(samples, "counting tokens"):
        try:
            inputs = encode_sample(processor, sample)
        except SampleTooLongError as error:
            lengths.append(error.num_tokens)
            too_long.append(f"{sample.id} with {error.num_tokens:,} tokens")
        except DatasetError as error:
            rejected.append(str(error))
        else:
            lengths.append(len(inputs.tokens))
            measured.append(len(inputs.measured))
            of_images.append(int((inputs.image_bounds[:, 1] - inputs.image_bounds[:, 0]).sum()))
    counts = {"tokens": lengths, "tokens_of_answers": measured, "tokens_of_images": of_images}
    return {
        **{name: spread(values) for name, values in counts.items() if values},
        "context_length": processor.context_length,
        **listed("longer_than_context", too_long),
        **listed("rejected_by_the_model", rejected),
    }
