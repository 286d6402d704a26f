"""Measure schemes and calibration sets for models with audio on the trained audio reference, in three engines.

    python -m benchmarks.audio

Every artifact has one part of the model quantized and 32-bit floats elsewhere, and is measured against the original on
the held-out speech set: in PyTorch, in ONNX Runtime, and in llama.cpp with the audio encoder under `glma`. Artifacts
without quantization separate the error of an engine. `benchmarks.audio_speed` adds bytes and times of the encoder.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audio_speed import encoder_rows
from benchmarks.commands import AUDIO_REFERENCE, SPEECH_HELDOUT, SPEECH_STARTER, WORK, provenance, write_result
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import ORIGINAL, Difference, Settings
from mcpmq.evaluate.metrics import changes
from mcpmq.evaluate.schema import GroupResult
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.report.evaluation import evaluate
from mcpmq.report.report import ArtifactResult
from mcpmq.system.audio_file import encode_wav, read_audio

FOLDER = WORK / "audio"
GROUPS = ("audio", "text")
NEAREST, TEXTS, NOISE, FEW, SPEECH = "", "texts", "noise", "speech, as few", "speech"  # calibration sets
PARTS = {
    "language": ("language.*",),
    "encoder": ("audio.*",),
    "projector": ("audio_projector.*",),
    "language and encoder": ("language.*", "audio.*"),
}
RESULT_METRICS = ("perplexity", "exact_match")
DIFFERENCE_METRICS = ("kl_divergence", "perplexity_ratio", "top_1_agreement", "exact_match_change")


@dataclass(frozen=True, slots=True)
class Variant:
    """The scheme of one part, and the calibration set of GPTQ; without one, weights are rounded to nearest."""

    part: str = ""  # nothing is quantized
    scheme: str = "f32"
    calibration: str = NEAREST

    @property
    def name(self) -> str:
        """`encoder-int4-g32-speech`"""
        name = "-".join(part for part in (self.part, self.scheme, self.calibration) if part)
        return name.replace(",", "").replace(" ", "-")

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """The formats of its codes, beside the quantized model in PyTorch; `glma` has no quantized projector."""
        if self.calibration not in (NEAREST, SPEECH):
            return ()
        return ("onnx",) if self.part == "projector" else ("onnx", "gguf")

    def recipe(self) -> Recipe:
        """Return the recipe, with the method of the built-in recipes for `--bits 4`."""
        weights = {"*": "f32"} | dict.fromkeys(PARTS.get(self.part, ()), self.scheme)
        method = {"method": "gptq", "targets": "model"} if self.calibration else {"method": "rtn"}
        return Recipe.model_validate({"name": self.name, "gguf_audio": "glma", **method, "weights": weights})


def variants() -> Iterator[Variant]:
    """Yield all quantized variants; texts alone do not calibrate an encoder, and are refused for it."""
    sets = {"language": (NEAREST, TEXTS, FEW, SPEECH), "encoder": (NEAREST, NOISE, SPEECH)}
    for part in PARTS:
        yield Variant(part, "int8-g32")
        yield from (Variant(part, "int4-g32", calibration) for calibration in sets.get(part, (NEAREST, SPEECH)))


def calibration_sets() -> dict[str, SampleSet]:
    """Return the calibration sets by name: the starter set, its texts, as few of its samples, and noise for speech."""
    speech = SampleSet.open(SPEECH_STARTER)
    texts = SampleSet(speech.path, tuple(one for one in speech if not one.audio))
    few = tuple(speech.samples[index * len(speech) // len(texts)] for index in range(len(texts)))
    return {TEXTS: texts, FEW: SampleSet(speech.path, few), NOISE: _noise_set(FOLDER / "noise"), SPEECH: speech}


def _noise_set(folder: Path) -> SampleSet:
    """Write the starter set with white noise of the same length and power in the place of speech."""
    (folder / "audio").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for text in (SPEECH_STARTER / "manifest.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "audio" in line:
            speech = read_audio(SPEECH_STARTER / line["audio"], line["id"]).samples
            noise = rng.standard_normal(len(speech)) * np.sqrt(np.square(speech).mean())
            content = encode_wav(noise.clip(-1, 1).astype(np.float32))
            (folder / line["audio"]).write_bytes(content)
            line["audio_sha256"] = hashlib.sha256(content).hexdigest()
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return SampleSet.open(folder)


def build(variant: Variant, checkpoint: Checkpoint, sets: Mapping[str, SampleSet]) -> list[Artifact]:
    """Return the quantized model and its exports."""
    folder, plan = FOLDER / variant.name, make_plan(checkpoint, variant.recipe())
    model = quantize(plan, folder / "quantized", sets.get(variant.calibration), device="cpu")
    return [model.artifact, *(export(model, name, folder / name) for name in variant.formats)]


def row(variant: Variant, result: ArtifactResult) -> dict[str, Any]:
    """Return the recorded part of an artifact's result."""
    measured, baselines = result.measurement, result.engine_baseline_differences or {}
    groups = {name: _metrics(measured.groups[name], result.differences[name]) for name in GROUPS}
    settings = {**asdict(variant), "format": result.kind, "engine": measured.engine}
    sizes = {"nbytes": measured.nbytes, "nbytes_by_component": measured.nbytes_by_component}
    from_unquantized = {name: _differences(one) for name, one in baselines.items()}
    return {**settings, **sizes, "groups": groups, "from_unquantized": from_unquantized}


def _metrics(result: GroupResult, difference: Difference) -> dict[str, Any]:
    measured = result.model_dump(mode="json", include=set(RESULT_METRICS))
    return measured | _differences(difference)


def _differences(difference: Difference) -> dict[str, Any]:
    return difference.model_dump(mode="json", include=set(DIFFERENCE_METRICS))


def paired_changes(results: Sequence[tuple[Variant, ArtifactResult]]) -> Iterator[dict[str, Any]]:
    """Yield, for every 4-bit part and engine, the change from each other calibration to that with speech."""
    for last, calibrated in results:
        for first, other in results if last.calibration == SPEECH else ():
            is_pair = (first.part, first.scheme, other.kind) == (last.part, last.scheme, calibrated.kind)
            if not is_pair or first == last:
                continue
            samples = other.measurement.samples, calibrated.measurement.samples
            change = changes(*samples, ORIGINAL)["audio"].model_dump(mode="json")
            yield {"part": last.part, "format": other.kind, "from": first.calibration, "to": SPEECH, **change}


def measure() -> dict[str, Any]:
    """Build all artifacts, evaluate them in one run, and return the rows."""
    checkpoint, sets, held_out = Checkpoint.open(AUDIO_REFERENCE), calibration_sets(), SampleSet.open(SPEECH_HELDOUT)
    unquantized, *baselines = build(Variant(), checkpoint, sets)
    built = [(one, artifact) for one in variants() for artifact in build(one, checkpoint, sets)]
    artifacts = [unquantized, *(artifact for _, artifact in built)]
    settings = Settings.from_options(threads=1, use_cache=False, generate_answers=False)
    report = evaluate(artifacts, checkpoint, held_out, settings, out=FOLDER / "report", engine_baselines=baselines)
    origins = [Variant()] * (len(baselines) + 1) + [one for one, _ in built]
    results = list(zip(origins, report.artifacts, strict=True))
    return {
        "calibration": {name: _counts(one) for name, one in sets.items()},
        "original": _original(report),
        "rows": [row(*pair) for pair in results],
        "changes": list(paired_changes(results)),
    }


def _counts(samples: SampleSet) -> dict[str, int]:
    return {"samples": len(samples), "audio": sum(bool(one.audio) for one in samples)}


def _original(report: Report) -> dict[str, Any]:
    fields = {"samples", "tokens", *RESULT_METRICS}
    return {name: report.original.groups[name].model_dump(mode="json", include=fields) for name in GROUPS}


def main() -> None:
    """Measure and record the rows."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    encoder = encoder_rows(FOLDER / "published-size")
    facts = provenance("benchmarks.audio", "onnxruntime")
    write_result("audio", facts | measure() | {"encoder": encoder})


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
