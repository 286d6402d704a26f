"""The samples that suffered most, with a small copy of the image and what both models would say."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.evaluate import Measurement
from mcpmq.evaluate.metrics import SampleFigures
from mcpmq.report.report import WorstSample

SHOWN, SIDE_PIXELS, QUALITY = 6, 192, 80


def worst_samples(
    checkpoint: Checkpoint,
    samples: CalibrationSet,
    answers: Mapping[str, Sequence[int]],
    original: Measurement,
    measurement: Measurement,
) -> tuple[WorstSample, ...]:
    """Those whose right answers, token ids by the id of the sample, became less likely by the largest factors."""
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    given = {sample.id: sample for sample in samples}
    pairs = sorted(zip(original.samples, measurement.samples, strict=True), key=_increase, reverse=True)[:SHOWN]
    return tuple(
        WorstSample(
            id=after.id,
            kind=after.kind,
            prompt=given[after.id].prompt,
            answer=_pieces(tokenizer, answers[after.id]),
            original=_pieces(tokenizer, before.likeliest),
            artifact=_pieces(tokenizer, after.likeliest),
            loss_increase=round(_increase((before, after)), 6),
            image=_small_copy(given[after.id].image),
        )
        for before, after in pairs
        if _increase((before, after)) > 0
    )


def _increase(pair: tuple[SampleFigures, SampleFigures]) -> float:
    return sum(pair[1].losses) - sum(pair[0].losses)


def _pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    return tuple(tokenizer.decode([token], skip_special_tokens=False) for token in tokens)


def _small_copy(path: Path | None) -> str | None:
    if path is None:
        return None
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + b64encode(stream.getvalue()).decode()
