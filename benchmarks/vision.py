"""Evaluate schemes and methods for the vision tower and the connector: accuracy, bytes, encoding time.

python -m benchmarks.vision                     the reference checkpoint, and the ablation of its components
python -m benchmarks.vision --real-size         random weights of MiniCPM-V 2.6's published widths: bytes and seconds

Only vision and connector are quantized; all other weights are 32-bit floats.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import (
    HELDOUT,
    REFERENCE,
    RESULTS,
    STARTER,
    WORK,
    evaluate,
    provenance,
    run_command,
    write_result,
)
from benchmarks.real_size import write_checkpoint
from mcpmq.evaluate.schema import MachineMetrics
from mcpmq.report.ablation import ABLATION_FILE, ComponentAblation

VISION_WORK, REAL_SIZE_WORK = WORK / "vision", WORK / "vision-real-size"
METRICS = ("perplexity_ratio", "kl_divergence", "top_1_agreement")
SLICES, REPEATS = 10, 5  # slices are encoded one after the other; the shortest repeat counts
CALIBRATION_IMAGES = 6  # for the random weights of published size, whose ranges have no meaning


@dataclass(frozen=True, slots=True)
class Variant:
    """Format, scheme and method of vision and connector."""

    format: str
    scheme: str
    position_scheme: str  # of the position embedding table
    method: str = "rtn"
    smooth: str = "none"
    activations: str = ""  # quantization of the inputs of matrices

    @property
    def name(self) -> str:
        """The name of the folder and of the recipe."""
        parts = (self.format, self.scheme, self.activations, self.smooth, self.method)
        return "-".join(part for part in parts if part not in ("", "none"))

    @property
    def needs_calibration(self) -> bool:
        """True if calibration samples affect the artifact."""
        return self.method != "rtn" or bool(self.activations)

    def recipe(self, language_scheme: str) -> str:
        """Return the TOML text."""
        lines = [f'name = "{self.name}"', f'method = "{self.method}"', f'smooth = "{self.smooth}"']
        if self.activations:
            lines += ["[activations]", f'"vision.*" = "{self.activations}"', f'"projector.*" = "{self.activations}"']
        schemes = {
            "*": language_scheme,
            "vision.*": self.scheme,
            "projector.*": self.scheme,
            "vision.position_embedding": self.position_scheme,
        }
        return "\n".join([*lines, "[weights]", *(f'"{glob}" = "{scheme}"' for glob, scheme in schemes.items()), ""])


VARIANTS = (
    Variant("gguf", "f16", "f16"),
    *(Variant("gguf", scheme, "q8_0", method) for scheme in ("q8_0", "q4_0", "iq4_nl") for method in ("rtn", "gptq")),
    Variant("onnx", "f32", "f32"),
    *(Variant("onnx", scheme, "int8-g32", method) for scheme in ("int8-row", "int4-g32") for method in ("rtn", "gptq")),
    Variant("onnx", "int8-row", "int8-g32", "rtn", activations="u8"),
    Variant("onnx", "int8-row", "int8-g32", "gptq", activations="u8"),
    Variant("onnx", "int8-row", "int8-g32", "gptq", "smoothquant", "u8"),
)
REAL_SIZE_VARIANTS = tuple(variant for variant in VARIANTS if variant.method == "rtn")


def build_artifact(variant: Variant, checkpoint: Path, samples: Path, work: Path, language_scheme: str) -> Path:
    """Write the artifact of a variant."""
    folder = work / variant.name
    recipe, codes, out = work / f"{variant.name}.toml", folder / "quantized", folder / variant.format
    recipe.write_text(variant.recipe(language_scheme))
    calibration = ["--calibration", samples] if variant.needs_calibration else []
    run_command("quantize", checkpoint, codes, "--recipe", recipe, *calibration, out=codes)
    run_command("export", codes, out, "--format", variant.format, out=out)
    shutil.rmtree(codes)
    return out


def seconds_per_slice(artifact: Path, engine: str, side: int, slices: int, repeats: int, threads: int = 2) -> float:
    """Time the encoding of slices of noise, `side` pixels wide, in the engine of the artifact."""
    runner = import_module(f"mcpmq.runners.{engine}").open_runner(artifact, threads)
    pixels = np.random.default_rng(0).integers(0, 256, (slices, side, side, 3), np.uint8)
    runner.encode_slice(pixels[0])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for one in pixels:
            runner.encode_slice(one)
        seconds.append((time.perf_counter() - start) / slices)
    return min(seconds)


def result_row(variant: Variant, artifact: Path) -> dict[str, Any]:
    """Return the settings of a variant and the bytes of its vision files."""
    files = json.loads((artifact / "mcpmq.json").read_text())["files"]
    nbytes = sum(file["nbytes"] for file in files if file["component"] == "vision+projector")
    settings = {key: value for key, value in asdict(variant).items() if key != "position_scheme"}
    return {**settings, "nbytes": nbytes}


def _peaks(metrics: MachineMetrics) -> dict[str, int | None]:
    return {
        "peak_rss_bytes": metrics.peak_rss_bytes,
        "sequential_peak_rss_bytes": metrics.sequential_peak_rss_bytes,
    }


def run_reference() -> Iterator[dict[str, Any]]:
    """Yield a row for every variant of the reference checkpoint."""
    artifacts = {build_artifact(variant, REFERENCE, STARTER, VISION_WORK, "f32"): variant for variant in VARIANTS}
    report = evaluate(artifacts, VISION_WORK / "report")
    for (artifact, variant), result in zip(artifacts.items(), report.artifacts, strict=True):
        image = result.differences["image"].model_dump(mode="json", include=set(METRICS))
        seconds = seconds_per_slice(artifact, variant.format, 112, SLICES, REPEATS)
        peaks = _peaks(result.measurement.machine_dependent)
        yield {**result_row(variant, artifact), "image": image, **peaks, "seconds_per_slice": seconds}


def run_ablation() -> None:
    """Record the loss of each component at the same 4-bit scheme, by RTN and by GPTQ."""
    for method in ("rtn", "gptq"):
        recipe, codes = VISION_WORK / f"int4-{method}.toml", VISION_WORK / f"int4-{method}"
        recipe.write_text(f'name = "int4-{method}"\nmethod = "{method}"\n[weights]\n"*" = "int4-g32"\n')
        calibration = [] if method == "rtn" else ["--calibration", STARTER]
        run_command("quantize", REFERENCE, codes, "--recipe", recipe, *calibration, out=codes)
        out = VISION_WORK / f"ablation-{method}"
        sets = ("--against", REFERENCE, "--eval-set", HELDOUT)
        run_command("evaluate", codes, "--ablate-components", *sets, "--out", out, out=out)
        ablation = ComponentAblation.model_validate_json((out / ABLATION_FILE).read_bytes())
        (RESULTS / f"ablation-{method}.json").write_text(ablation.model_dump_json() + "\n")


def run_real_size() -> Iterator[dict[str, Any]]:
    """Yield a row for every RTN variant; bytes and seconds do not depend on the values of weights."""
    checkpoint, samples = REAL_SIZE_WORK / "checkpoint", REAL_SIZE_WORK / "samples"
    write_checkpoint(checkpoint, 1)
    shutil.copytree(STARTER / "images", samples / "images")
    lines = [line for line in (STARTER / "manifest.jsonl").read_text().splitlines() if '"image"' in line]
    (samples / "manifest.jsonl").write_text("\n".join(lines[:CALIBRATION_IMAGES]) + "\n")
    for variant in REAL_SIZE_VARIANTS:
        language_scheme = "q8_0" if variant.format == "gguf" else "int8-g32"
        artifact = build_artifact(variant, checkpoint, samples, REAL_SIZE_WORK, language_scheme)
        seconds = seconds_per_slice(artifact, variant.format, 448, 1, 3)
        yield {**result_row(variant, artifact), "seconds_per_slice": seconds}
        shutil.rmtree(artifact)


def main() -> None:
    """Measure and record the rows, and without --real-size the ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-size", action="store_true")
    real_size = parser.parse_args().real_size
    work = REAL_SIZE_WORK if real_size else VISION_WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = list(run_real_size() if real_size else run_reference())
    facts = provenance("benchmarks.vision", "onnxruntime")
    write_result("vision-real-size" if real_size else "vision", facts | {"rows": rows})
    if not real_size:
        run_ablation()


if __name__ == "__main__":
    main()
