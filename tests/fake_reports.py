"""A report about nothing, for tests of how reports are kept and drawn."""

from functools import cache

import numpy as np

from mcpmq.evaluate import ORIGINAL, Measurement, differences
from mcpmq.evaluate.measure import MachineFigures
from mcpmq.evaluate.metrics import ComparedTokens, SampleFigures, by_kind
from mcpmq.report.report import (
    BlockFacts,
    CalibrationFacts,
    Entry,
    Environment,
    LayerPicture,
    Report,
    SetFacts,
    SourceFacts,
    WeightFacts,
    WorstSample,
)
from mcpmq.runners.runner import Phases

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="
BLOCKS = (
    *(
        BlockFacts(name=f"{part}.layers.{layer}", bits_per_weight=4.5 + layer, error=0.05 / (1 + layer))
        for part in ("vision", "language")
        for layer in range(6)
    ),
    BlockFacts(name="head", bits_per_weight=16.0, error=None),
)
COLUMNS = [("gguf", "phone-int4"), ("onnx", "phone-int4"), ("onnx", "phone-int8"), ("gguf", "phone-int8")]


@cache
def invented_measurement(seed: int, worse: float = 0.0) -> Measurement:
    """Losses that are `worse` by so much than those of the same kind with 0."""
    base, own = np.random.default_rng(0), np.random.default_rng(seed)
    samples = []
    for number in range(30):
        kind = ("image", "nonsquare", "text")[number % 3]
        losses = base.gamma(1, 1, 5) + worse * own.normal(1, 1, 5)
        right, same = base.random(5) > worse, own.random(5) > worse
        divergences = np.round(worse * own.gamma(1, 1, 5), 8)
        compared = ComparedTokens(kl_divergences=tuple(divergences.tolist()), same_top=tuple(same.tolist()))
        samples.append(
            SampleFigures(
                id=str(number),
                kind=kind,
                losses=tuple(np.round(losses, 6).tolist()),
                right=tuple((right & same).tolist()),
                likeliest=(1, 2, 3, 4, 5),
                compared={ORIGINAL: compared},
            )
        )
    return Measurement(
        engine="Pencil 1.0",
        kinds=by_kind(samples),
        nbytes_by_component={"vision+projector": 7_000_000 + seed, "language": 9_000_000, "model": 60_000},
        machine_dependent=MachineFigures(
            load_seconds=1.5,
            tokens_per_second=1234.5,
            peak_resident_bytes=162_000_000,
            resident_bytes_before_load=99,
            phases=Phases(0.25, 456.7, 89.1) if seed else None,
            in_turn_peak_resident_bytes=123_000_000 if seed else None,
        ),
        cache_bytes_per_token=6144 if seed else None,
        notes=("drawn by hand",),
        samples=tuple(samples),
    )


@cache
def invented_report(artifacts: int = 4) -> Report:
    """An original and up to four artifacts."""
    original, entries = invented_measurement(0), []
    for seed, (kind, recipe) in enumerate(COLUMNS[:artifacts], 1):
        measured = invented_measurement(seed, 0.01 * seed)
        found = differences(original.samples, measured.samples, ORIGINAL)
        entries.append(
            Entry(
                name=kind,
                kind=kind,
                recipe=recipe,
                sha256="ef" * 32,
                calibrated_on=CalibrationFacts(name="starter", sha256="01" * 32),
                weights=WeightFacts(bits_per_weight=4.5, nbytes_by_scheme={"int4-g32": 8_000_000, "f32": 9_000}),
                measurement=measured,
                differences=found,
                by_quantization=None,
                layers=LayerPicture(
                    errors_of="weights",
                    blocks=BLOCKS,
                ),
                worst=(
                    WorstSample(
                        id="<7>",
                        kind="image",
                        prompt="What does the sign say?",
                        answer=("The", " sign", " says", " <b>", "<|im_end|>"),
                        original=("The", " sign", " says", " <b>", "<|im_end|>"),
                        artifact=("The", " sign", " reads", " <i>", "<|im_end|>"),
                        loss_increase=3.25,
                        image=PIXEL,
                    ),
                ),
            )
        )
    return Report(
        checkpoint=SourceFacts(name="model [v2]", sha256="ab" * 32),
        measured_on=SetFacts(
            name="heldout",
            sha256="cd" * 32,
            samples=30,
            held_out_from_calibration=False,
            images_shuffled=False,
            cut_by_engine=False,
        ),
        original=original,
        artifacts=tuple(entries),
        environment=Environment(machine={"processor": "Abacus"}, python="3.11", versions={}, threads=2),
    )
