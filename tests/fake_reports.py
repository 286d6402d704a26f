"""Reports of random numbers, for tests of files, tables and gates."""

from functools import cache

import numpy as np

from mcpmq.evaluate import ORIGINAL, Measurement, differences
from mcpmq.evaluate.metrics import group_results
from mcpmq.evaluate.schema import ComparedTokens, MachineMetrics, SampleMetrics
from mcpmq.report.report import (
    ArtifactResult,
    BlockInfo,
    CalibrationInfo,
    DatasetInfo,
    Environment,
    LayerErrors,
    Report,
    SourceInfo,
    WeightInfo,
    WorstSample,
)
from mcpmq.runners.runner import PhaseTimings

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="
BLOCKS = (
    *(
        BlockInfo(name=f"{part}.layers.{layer}", bits_per_weight=4.5 + layer, error=0.05 / (1 + layer))
        for part in ("vision", "language")
        for layer in range(6)
    ),
    BlockInfo(name="head", bits_per_weight=16.0, error=None),
)
COLUMNS = [("gguf", "phone-int4"), ("onnx", "phone-int4"), ("onnx", "phone-int8"), ("gguf", "phone-int8")]


@cache
def make_measurement(seed: int, worse: float = 0.0) -> Measurement:
    """Return a measurement with random losses, increased by about `worse`."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    samples = []
    for number in range(30):
        kind = ("image", "nonsquare", "text")[number % 3]
        losses = shared.gamma(1, 1, 5) + worse * own.normal(1, 1, 5)
        right, same = shared.random(5) > worse, own.random(5) > worse
        divergences = np.round(worse * own.gamma(1, 1, 5), 8)
        compared = ComparedTokens(kl_divergences=tuple(divergences.tolist()), top1_match=tuple(same.tolist()))
        samples.append(
            SampleMetrics(
                id=str(number),
                group=kind,
                losses=tuple(np.round(losses, 6).tolist()),
                correct=tuple((right & same).tolist()),
                argmax_ids=(1, 2, 3, 4, 5),
                compared={ORIGINAL: compared},
            )
        )
    return Measurement(
        engine="Example 1.0",
        groups=group_results(samples),
        nbytes_by_component={"vision+projector": 7_000_000 + seed, "language": 9_000_000, "model": 60_000},
        machine_dependent=MachineMetrics(
            load_seconds=1.5,
            tokens_per_second=1234.5,
            peak_rss_bytes=162_000_000,
            baseline_rss_bytes=99,
            phases=PhaseTimings(0.25, 456.7, 89.1) if seed else None,
            sequential_peak_rss_bytes=123_000_000 if seed else None,
        ),
        kv_cache_bytes_per_token=6144 if seed else None,
        kv_cache="f16" if seed else None,
        notes=("a note",),
        samples=tuple(samples),
    )


@cache
def make_report(artifacts: int = 4) -> Report:
    """Return a report of an original and up to four artifacts."""
    original, results = make_measurement(0), []
    for seed, (kind, recipe) in enumerate(COLUMNS[:artifacts], 1):
        measured = make_measurement(seed, 0.01 * seed)
        found = differences(original.samples, measured.samples, ORIGINAL)
        results.append(
            ArtifactResult(
                name=kind,
                kind=kind,
                recipe=recipe,
                sha256="ef" * 32,
                calibration_set=CalibrationInfo(name="starter", sha256="01" * 32),
                weights=WeightInfo(bits_per_weight=4.5, nbytes_by_scheme={"int4-g32": 8_000_000, "f32": 9_000}),
                measurement=measured,
                differences=found,
                engine_baseline_differences=None,
                layers=LayerErrors(
                    error_basis="weights",
                    blocks=BLOCKS,
                ),
                worst_samples=(
                    WorstSample(
                        id="<7>",
                        group="image",
                        prompt="What does the sign say?",
                        answer_tokens=("The", " sign", " says", " <b>", "<|im_end|>"),
                        original_argmax=("The", " sign", " says", " <b>", "<|im_end|>"),
                        artifact_argmax=("The", " sign", " reads", " <i>", "<|im_end|>"),
                        loss_increase=3.25,
                        image=PIXEL,
                    ),
                ),
            )
        )
    return Report(
        checkpoint=SourceInfo(name="model [v2]", sha256="ab" * 32),
        eval_set=DatasetInfo(
            name="heldout",
            sha256="cd" * 32,
            samples=30,
            held_out_from_calibration=False,
            images_shuffled=False,
            engine_preprocessing=False,
        ),
        original=original,
        artifacts=tuple(results),
        environment=Environment(machine={"processor": "Example CPU"}, python="3.11", versions={}, threads=2),
    )
