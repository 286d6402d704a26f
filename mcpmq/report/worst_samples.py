"""The samples with the largest loss increase, with a thumbnail and the argmax tokens of both models."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

from tokenizers import Tokenizer

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate import Measurement
from mcpmq.evaluate.schema import SampleMetrics
from mcpmq.families.images import open_image
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.report.report import WorstSample

MAX_SAMPLES, THUMBNAIL_PIXELS, JPEG_QUALITY = 6, 192, 80


def worst_samples(
    checkpoint: Checkpoint,
    samples: SampleSet,
    answers: Mapping[str, Sequence[int]],
    original: Measurement,
    measurement: Measurement,
) -> tuple[WorstSample, ...]:
    """Return the samples whose answer loss increased most; `answers` are token ids by sample id."""
    tokenizer = read_tokenizer(checkpoint.path)
    by_id = {sample.id: sample for sample in samples}
    pairs = sorted(zip(original.samples, measurement.samples, strict=True), key=_loss_increase, reverse=True)
    return tuple(
        WorstSample(
            id=after.id,
            group=after.group,
            prompt=by_id[after.id].prompt,
            answer_tokens=_decode(tokenizer, answers[after.id]),
            original_argmax=_decode(tokenizer, before.argmax_ids),
            artifact_argmax=_decode(tokenizer, after.argmax_ids),
            loss_increase=round(_loss_increase((before, after)), 6),
            image=_thumbnail(by_id[after.id]),
        )
        for before, after in pairs[:MAX_SAMPLES]
        if _loss_increase((before, after)) > 0
    )


def _loss_increase(pair: tuple[SampleMetrics, SampleMetrics]) -> float:
    return sum(pair[1].losses) - sum(pair[0].losses)


def _decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    return tuple(tokenizer.decode([token], skip_special_tokens=False) for token in tokens)


def _thumbnail(sample: Sample) -> str | None:
    """Return a small copy of the image of a sample as a data URI."""
    if sample.image is None:
        return None
    thumbnail = open_image(sample.id, sample.image)
    thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = BytesIO()
    thumbnail.save(stream, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + b64encode(stream.getvalue()).decode()
