"""The samples with the largest loss increase, with a thumbnail and the argmax tokens of both models."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate import EncodedInputs, Measurement, Settings, inputs_of
from mcpmq.evaluate.measure import artifact_options, original_options
from mcpmq.evaluate.schema import SampleMetrics
from mcpmq.families.images import open_image
from mcpmq.families.inputs import Inputs
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.families.video_frames import open_video, spread_frames
from mcpmq.formats import engine_of
from mcpmq.formats.format import Engine
from mcpmq.report.report import WorstSample
from mcpmq.runners.greedy import Budget, GreedyAnswer
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import NO_OPTIONS, generate_answers
from mcpmq.runners.runner import EngineOptions
from mcpmq.system.temporary_folder import temporary_folder

MAX_SAMPLES, MAX_THUMBNAILS, THUMBNAIL_PIXELS, JPEG_QUALITY = 6, 4, 192, 80
ELLIPSIS = " …"
# Share of the tokens and pixels of the evaluation that the passes of a model for its answers may have.
MAX_COST_SHARE = 0.02
MIN_TOKENS, SMALL_MODEL_WEIGHTS = 1 << 14, 20_000_000  # of larger models fewer tokens, at the same cost


@dataclass(frozen=True, slots=True)
class GreedyAnswers:
    """The greedy answers of an original and an artifact to the prompts of samples, by sample id."""

    original: Mapping[str, GreedyAnswer]
    artifact: Mapping[str, GreedyAnswer]


def worst_pairs(original: Measurement, measurement: Measurement) -> list[tuple[SampleMetrics, SampleMetrics]]:
    """Return both metrics of the samples whose answer loss increased most, among those with the original's tokens."""
    both = zip(original.samples, measurement.samples, strict=True)
    pairs = sorted((pair for pair in both if pair[1].has_original_tokens), key=_loss_increase, reverse=True)
    return [pair for pair in pairs[:MAX_SAMPLES] if _loss_increase(pair) > 0]


def generate_worst_answers(
    checkpoint: Checkpoint,
    original: Measurement,
    measured: Sequence[tuple[Artifact, Measurement]],
    inputs: EncodedInputs,
    settings: Settings,
) -> list[GreedyAnswers]:
    """Return the greedy answers of both models to the worst samples of every artifact.

    Raises:
        EngineError: an engine failed.
    """
    worst = [[after.id for _, after in worst_pairs(original, one)] for _, one in measured]
    ids = dict.fromkeys(sample_id for several in worst for sample_id in several)
    if not ids or not settings.generate_answers:
        return [GreedyAnswers({}, {}) for _ in measured]
    with temporary_folder() as folder:
        encoded = {one.id: one for one in inputs.store if one.id in ids}
        budget = _budget(checkpoint, inputs.store)
        answers = partial(_answers, folder, encoded, _predicted(original), settings.threads, budget)
        originals = answers("original", "torch", checkpoint.path, list(ids), original_options(checkpoint))
        return [
            GreedyAnswers(
                originals, _artifact_answers(artifact, folder / f"{number}", inputs, found, one, settings, budget)
            )
            for number, ((artifact, found), one) in enumerate(zip(measured, worst, strict=True))
        ]


def _artifact_answers(
    artifact: Artifact,
    folder: Path,
    inputs: EncodedInputs,
    measured: Measurement,
    ids: list[str],
    settings: Settings,
    budget: Budget,
) -> dict[str, GreedyAnswer]:
    """Return the answers of an artifact to its own encoding of the samples, in the tokens of the original."""
    engine, kept = engine_of(artifact.manifest.kind), artifact.manifest.vocabulary
    model = engine, artifact.path, ids, artifact_options(engine, settings)
    predicted = _predicted(measured)
    if kept is not None:
        predicted = {name: kept.new_ids[list(tokens)].tolist() for name, tokens in predicted.items()}
    with inputs_of(artifact.manifest, inputs, settings, ids) as own:
        encoded = {one.id: one for one in own.store if one.id in ids}
        answers = _answers(folder.parent, encoded, predicted, settings.threads, budget, folder.name, *model)
    if kept is None:
        return answers
    old_ids = kept.ids
    return {name: replace(one, tokens=tuple(old_ids[list(one.tokens)].tolist())) for name, one in answers.items()}


def _predicted(measurement: Measurement) -> dict[str, Sequence[int]]:
    """Return the most probable tokens of every sample, given the reference answers."""
    return {one.id: one.argmax_ids for one in measurement.samples}


def _budget(checkpoint: Checkpoint, samples: Iterable[Inputs]) -> Budget:
    """Return the budget of the passes that generate answers, for an evaluation of samples."""
    weights = Counter[str]()
    for spec in checkpoint.specs:
        weights[spec.component] += prod(spec.shape)
    vision = checkpoint.architecture.vision
    per_pixel = weights["vision"] / weights["language"] / max(1, vision.patch_size) ** 2 if vision else 0.0
    total = sum(weights.values())
    minimum = MIN_TOKENS * min(1.0, SMALL_MODEL_WEIGHTS / total)
    cost = sum(map(Budget(0, per_pixel).cost, samples))
    return Budget(max(minimum, MAX_COST_SHARE * cost), per_pixel)


def _answers(
    folder: Path,
    encoded: Mapping[str, Inputs],
    predicted: Mapping[str, Sequence[int]],
    threads: int,
    budget: Budget,
    name: str,
    engine: Engine,
    model: Path,
    ids: list[str],
    options: EngineOptions = NO_OPTIONS,
) -> dict[str, GreedyAnswer]:
    (folder / name).mkdir()
    store = InputsStore(folder / name)
    for sample_id in ids:
        store.append(encoded[sample_id])
    if not ids:
        return {}
    tokens = [predicted[sample_id] for sample_id in ids]
    return dict(zip(ids, generate_answers(engine, model, store, tokens, threads, budget, options), strict=True))


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
