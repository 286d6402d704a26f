"""Evaluate every quantization method with every scheme, in every format that supports the scheme.

python -m benchmarks.methods

Only the matrices of the language model are quantized, so a difference is that of the method; all methods of one scheme
give the same size. Calibration uses the whole starter set, or only its samples with or without an image.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.commands import REFERENCE, STARTER, WORK, evaluate, provenance, run_command, write_result
from mcpmq.evaluate import Difference
from mcpmq.report import ArtifactResult

METHODS_WORK = WORK / "methods"
FORMATS = {"int4-g32": ("gguf", "onnx"), "q4_k": ("gguf",), "int8-g32": ("gguf", "onnx")}
INT4_VARIANTS = (  # method, smoothing, calibration data, targets
    ("rtn", "none", "nothing", "layer"),
    ("rtn-imatrix", "none", "text", "layer"),
    ("rtn-imatrix", "none", "images", "layer"),
    ("rtn-imatrix", "none", "all", "layer"),
    ("gptq", "none", "text", "model"),
    ("gptq", "none", "images", "model"),
    ("gptq", "none", "all", "layer"),
    ("gptq", "none", "all", "model"),
    ("rtn", "awq", "all", "layer"),
    ("auto", "none", "all", "model"),
    ("auto", "awq", "all", "layer"),
    ("auto", "awq", "all", "model"),
    ("auto", "fitted", "all", "model"),
    ("gptq", "fitted", "all", "model"),
)
INT8_VARIANTS = (
    ("rtn", "none", "nothing", "layer"),
    ("gptq", "none", "all", "model"),
    ("auto", "awq", "all", "model"),
    ("auto", "fitted", "all", "model"),
)
METRICS = ("perplexity_ratio", "kl_divergence", "kl_divergence_99th_percentile", "top_1_agreement")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantize the language model; `calibration_data` is nothing, text, images or all."""

    scheme: str
    method: str
    smooth: str
    calibration_data: str
    targets: str

    @property
    def name(self) -> str:
        """`q4_k-awq-gptq-images-model`, the name of the recipe and of the folder."""
        words = (self.scheme, self.smooth, self.method, self.calibration_data, self.targets)
        return "-".join(word for word in words if word != "none")

    def recipe(self) -> str:
        """Return the TOML text."""
        lines = [f'name = "{self.name}"', f'method = "{self.method}"', f'smooth = "{self.smooth}"']
        lines += ['targets = "model"'] if self.targets == "model" else []
        return "\n".join([*lines, "[weights]", f'"language.*" = "{self.scheme}"', ""])


def variants() -> list[Variant]:
    """Return all variants."""
    by_scheme = {scheme: INT8_VARIANTS if scheme.startswith("int8") else INT4_VARIANTS for scheme in FORMATS}
    return [Variant(scheme, *settings) for scheme, rows in by_scheme.items() for settings in rows]


def calibration_sets() -> dict[str, Path]:
    """Write the parts of the starter set and return the folders by calibration data."""
    lines = (STARTER / "manifest.jsonl").read_text().splitlines()
    folders = {"all": STARTER}
    for name, with_image in (("text", False), ("images", True)):
        folders[name] = METHODS_WORK / "samples" / name
        shutil.copytree(STARTER / "images", folders[name] / "images")
        part = [line for line in lines if ("image" in json.loads(line)) is with_image]
        (folders[name] / "manifest.jsonl").write_text("\n".join(part) + "\n")
    return folders


def export_artifacts(variant: Variant, samples: dict[str, Path]) -> Iterator[Path]:
    """Quantize and export to every format of the scheme; yield the artifacts."""
    folder = METHODS_WORK / variant.name
    recipe, codes = folder.with_suffix(".toml"), folder / "quantized"
    recipe.write_text(variant.recipe())
    calibration = ["--calibration", samples[variant.calibration_data]] if variant.calibration_data in samples else []
    run_command("quantize", REFERENCE, codes, "--recipe", recipe, *calibration, out=codes)
    for name in FORMATS[variant.scheme]:
        run_command("export", codes, folder / name, "--format", name, out=folder / name)
        yield folder / name


def group_metrics(differences: dict[str, Difference], metrics: tuple[str, ...] = METRICS) -> dict[str, Any]:
    """Return the recorded metrics of every group of samples."""
    return {group: one.model_dump(mode="json", include=set(metrics)) for group, one in differences.items()}


def result_row(variant: Variant, result: ArtifactResult) -> dict[str, Any]:
    """Return the recorded part of one artifact's result."""
    sizes = {"format": result.kind, "nbytes": result.measurement.nbytes}
    return asdict(variant) | sizes | {"groups": group_metrics(result.differences)}


def main() -> None:
    """Build all artifacts, evaluate them in one run, and record the metrics."""
    shutil.rmtree(METHODS_WORK, ignore_errors=True)
    samples = calibration_sets()
    artifacts = {path: variant for variant in variants() for path in export_artifacts(variant, samples)}
    report = evaluate(artifacts, METHODS_WORK / "report")
    rows = [result_row(variant, one) for variant, one in zip(artifacts.values(), report.artifacts, strict=True)]
    counts = {group: result.samples for group, result in report.original.groups.items()}
    write_result("methods", provenance("benchmarks.methods", "onnxruntime") | {"samples": counts, "rows": rows})


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
