"""The samples with the largest loss increase, with a thumbnail and the argmax tokens of both models."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

from PIL import Image
from tokenizers import Tokenizer

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate import Measurement
from mcpmq.evaluate.schema import SampleMetrics
from mcpmq.families.images import open_image
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.families.video_frames import open_video, spread_frames
from mcpmq.report.greedy_answers import GreedyAnswers
from mcpmq.report.report import WorstSample
from mcpmq.runners.greedy import GreedyAnswer

MAX_SAMPLES, MAX_THUMBNAILS, THUMBNAIL_PIXELS, JPEG_QUALITY = 6, 4, 192, 80
ELLIPSIS = " …"


def worst_pairs(original: Measurement, measurement: Measurement) -> list[tuple[SampleMetrics, SampleMetrics]]:
    """Return both metrics of the samples whose answer loss increased most, among those with the original's tokens."""
    both = zip(original.samples, measurement.samples, strict=True)
    pairs = sorted((pair for pair in both if pair[1].has_original_tokens), key=_loss_increase, reverse=True)
    return [pair for pair in pairs[:MAX_SAMPLES] if _loss_increase(pair) > 0]


def worst_ids(original: Measurement, measurement: Measurement) -> list[str]:
    """Return the ids of the samples of `worst_pairs`."""
    return [after.id for _, after in worst_pairs(original, measurement)]


def worst_samples(
    checkpoint: Checkpoint,
    samples: SampleSet,
    answers: Mapping[str, Sequence[int]],
    pairs: Sequence[tuple[SampleMetrics, SampleMetrics]],
    greedy: GreedyAnswers,
) -> tuple[WorstSample, ...]:
    """Describe the worst samples; `answers` are the token ids of the reference answers by sample id."""
    tokenizer = read_tokenizer(checkpoint.path)
    by_id = {sample.id: sample for sample in samples}
    return tuple(
        WorstSample(
            id=after.id,
            group=after.group,
            prompt=by_id[after.id].prompt,
            answer_tokens=_decode(tokenizer, answers[after.id]),
            original_argmax=_decode(tokenizer, before.argmax_ids),
            artifact_argmax=_decode(tokenizer, after.argmax_ids),
            original_answer=_text(tokenizer, greedy.original.get(after.id)),
            artifact_answer=_text(tokenizer, greedy.artifact.get(after.id)),
            loss_increase=round(_loss_increase((before, after)), 6),
            image=_thumbnail(by_id[after.id]),
        )
        for before, after in pairs
    )


def _text(tokenizer: Tokenizer, answer: GreedyAnswer | None) -> str | None:
    if answer is None:
        return None
    text = tokenizer.decode(list(answer.tokens), skip_special_tokens=False)
    return text if answer.complete else f"{text}{ELLIPSIS}"


def _loss_increase(pair: tuple[SampleMetrics, SampleMetrics]) -> float:
    return sum(pair[1].losses) - sum(pair[0].losses)


def _decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    return tuple(tokenizer.decode([token], skip_special_tokens=False) for token in tokens)


def _thumbnail(sample: Sample) -> str | None:
    """Return small copies of the first images of a sample, or of frames of its video, side by side, as a data URI."""
    images = [open_image(sample.id, image) for image in sample.images[:MAX_THUMBNAILS]]
    if not images and sample.videos:
        images = spread_frames(open_video(sample.id, sample.videos[0]), MAX_THUMBNAILS)
    if not images:
        return None
    for image in images:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    thumbnail = Image.new("RGB", (sum(one.width for one in images), max(one.height for one in images)), "white")
    for number, image in enumerate(images):
        thumbnail.paste(image, (sum(one.width for one in images[:number]), 0))
    stream = BytesIO()
    thumbnail.save(stream, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + b64encode(stream.getvalue()).decode()
