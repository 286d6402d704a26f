"""Measure image-token budgets, layer removal and W8A8 on the reference checkpoint.

    python -m benchmarks.structured images|layers|removed|w8a8

Images: artifacts that differ in the largest number of slices, on the samples whose images are cut into slices. Layers:
the original without layers. Removed: artifacts without the layers of that result, in llama.cpp and in ONNX Runtime.
W8A8: int8 weights with float inputs, and with int8 inputs, in PyTorch and in ONNX Runtime.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, STARTER, WORK, provenance, run_command, write_result
from benchmarks.markdown import load_result
from mcpmq.calibrate.forward import encode_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress, limit_images
from mcpmq.compression_tables import ImagesTable, LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.export import export
from mcpmq.families.images import open_image
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.layer_removal import measure_removal
from mcpmq.mixed_precision.sensitivity import ORIGINAL, mean_kld
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.report.report import ArtifactResult
from mcpmq.runners.onnx import open_runner as onnx_runner
from mcpmq.runners.token_metrics import TokenMetrics
from mcpmq.runners.torch import open_checkpoint
from mcpmq.runners.torch import open_runner as torch_runner
from mcpmq.system.progress import silent

FOLDER = WORK / "structured"
SLICES = (9, 6, 4, 3, 2, 1)
REMOVED = {"language": 3, "vision": 1}
CALIBRATION_SAMPLES, EVALUATION_SAMPLES = 20, 40
STEPS, REMOVED_RECIPE, REMOVED_SAMPLES = 2, "phone-int8", 80
ENGINES: tuple[FormatName, ...] = ("gguf", "onnx")
METRICS = ("kl_divergence", "top_1_agreement", "exact_match_change", "perplexity_ratio")
W8A8 = {
    "W8A16": {"smooth": "none", "method": "rtn", "activations": {}},
    "W8A16, SmoothQuant": {"smooth": "smoothquant", "method": "rtn", "activations": {}},
    "W8A8": {"smooth": "none", "method": "rtn", "activations": {"language.*": "s8-token"}},
    "W8A8, SmoothQuant": {"smooth": "smoothquant", "method": "rtn", "activations": {"language.*": "s8-token"}},
}


def main(part: str) -> None:
    """Run one part."""
    shutil.rmtree(FOLDER / part, ignore_errors=True)
    (FOLDER / part).mkdir(parents=True)
    rows = {"images": _images, "layers": _layers, "removed": _removed, "w8a8": _w8a8}[part](FOLDER / part)
    write_result(f"structured-{part}", provenance("benchmarks.structured") | rows)


def artifact_row(result: ArtifactResult) -> dict[str, Any]:
    """Return the recorded part of an artifact's result."""
    measured, groups = result.measurement, result.differences
    machine = measured.machine_dependent
    return {
        "nbytes": measured.nbytes,
        "kv_cache_bytes_per_token": measured.kv_cache_bytes_per_token,
        "tokens_per_second": machine.tokens_per_second,
        "peak_rss_bytes": machine.peak_rss_bytes,
        "phases": machine.model_dump(mode="json")["phases"],
        "exact_match": {name: one.exact_match.model_dump(mode="json") for name, one in measured.groups.items()},
        "groups": {name: one.model_dump(mode="json", include=set(METRICS)) for name, one in groups.items()},
    }


def evaluate_artifacts(artifacts: list[Path], eval_set: Path, out: Path, *options: object) -> Report:
    sets = ("--against", REFERENCE, "--eval-set", eval_set, "--threads", "1", "--no-answers")
    run_command("evaluate", *artifacts, *sets, "--out", out, *options, out=out)
    return Report.load(out)


def _images(work: Path) -> dict[str, Any]:
    sliced = _sliced_set(work / "sliced")
    for count in SLICES:
        options = ("--recipe", "phone-int8", "--format", "gguf", "--max-slices", count)
        run_command("quantize", REFERENCE, work / f"{count}-slices", *options, out=work / f"{count}-slices")
    report = evaluate_artifacts([work / f"{count}-slices" for count in SLICES], sliced, work / "report")
    pairs = zip(SLICES, report.artifacts, strict=True)
    rows = [
        {"max_slice_nums": count, "image_tokens": _mean_tokens(sliced, count), **artifact_row(one)}
        for count, one in pairs
    ]
    return {"eval_set": "samples of heldout with slices", "samples": len(SampleSet.open(sliced)), "rows": rows}


def _sliced_set(folder: Path) -> Path:
    """Write the held-out samples whose images are cut into slices as a set of their own."""
    (folder / "images").mkdir(parents=True)
    lines = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text().splitlines()]
    kept = [line for line in lines if "sliced" in line["tags"]]
    for line in kept:
        shutil.copyfile(HELDOUT / line["image"], folder / line["image"])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return folder


def _mean_tokens(samples: Path, count: int) -> float:
    """Return the mean number of image tokens of a sample."""
    images = [open_image(sample.id, image) for sample in SampleSet.open(samples) for image in sample.images]
    with limit_images(Checkpoint.open(REFERENCE), ImagesTable(max_slice_nums=count)) as view:
        settings, queries = view.family.open_vision_inputs(view.path), view.architecture.required_vision.num_queries
        return sum(settings.image_tokens(image.width, image.height, queries) for image in images) / len(images)


def _layers(_: Path) -> dict[str, Any]:
    samples = SampleSet.open(STARTER).spread(CALIBRATION_SAMPLES)
    checkpoint = Checkpoint.open(REFERENCE)
    curves = {
        component: measure_removal(checkpoint, component, most, samples, 1, silent).to_dict()
        for component, most in REMOVED.items()
    }
    return {"samples": len(samples), "curves": curves}


def _removed(work: Path) -> dict[str, Any]:
    curves = load_result("structured-layers")["curves"].values()
    steps = [(curve, step) for curve in curves for step in curve["steps"][:STEPS]]
    tables = [None, *(_table(curve, step) for curve, step in steps)]
    kinds = [(number, table, name) for name in ENGINES for number, table in enumerate(tables)]
    artifacts = [_without_layers(work / f"{number}-{name}", table, name) for number, table, name in kinds]
    report = evaluate_artifacts(artifacts, HELDOUT, work / "report", "--samples", REMOVED_SAMPLES)
    rows = [
        {"format": name, "removed": table.remove if table else (), **artifact_row(one)}
        for (_, table, name), one in zip(kinds, report.artifacts, strict=True)
    ]
    return {"recipe": REMOVED_RECIPE, "samples": len(report.original.samples), "rows": rows}


def _table(curve: Mapping[str, Any], step: Mapping[str, Any]) -> LayersTable:
    """Return the [layers] table of a step of the measured removal."""
    layers, cost = step["layers"], {"kl_divergence": step["kl_divergence"]}
    facts = {"answer_tokens": curve["answer_tokens"], "calibration": curve["calibration"]}
    return LayersTable(
        remove=tuple(layers), influence=tuple(curve["influences"][one] for one in layers), **cost, **facts
    )


def _without_layers(folder: Path, table: LayersTable | None, name: FormatName) -> Path:
    recipe = Recipe.load(REMOVED_RECIPE).model_copy(update={"layers": table})
    with compress(Checkpoint.open(REFERENCE), recipe) as view:
        return convert_in_one_pass(make_plan(view, recipe), name, folder).path


def _w8a8(work: Path) -> dict[str, Any]:
    checkpoint, calibration = Checkpoint.open(REFERENCE), SampleSet.open(STARTER).spread(CALIBRATION_SAMPLES)
    samples, rows = SampleSet.open(HELDOUT).spread(EVALUATION_SAMPLES), []
    inputs = encode_samples(checkpoint.family.open_processor(checkpoint.path), samples.samples, silent)
    original = work / ORIGINAL
    mean_kld(open_checkpoint(checkpoint, 1), inputs, TokenMetrics(inputs, original, {}))
    for number, (name, settings) in enumerate(W8A8.items()):
        recipe = Recipe.model_validate({"name": f"w8-{number}", **settings, "weights": {"language.*": "int8-row"}})
        quantized = quantize(make_plan(checkpoint, recipe), work / str(number), calibration)
        exported = export(quantized, "onnx", work / f"{number}-onnx")
        for engine, runner in (
            ("PyTorch", torch_runner(quantized.path, 1)),
            ("ONNX Runtime", onnx_runner(exported.path, 1)),
        ):
            start = time.process_time()
            kld = mean_kld(runner, inputs, TokenMetrics(inputs, None, {ORIGINAL: original}))
            seconds = time.process_time() - start
            rows.append({"kind": name, "engine": engine, "mean_kld": kld, "cpu_seconds": round(seconds, 2)})
    return {"samples": len(samples), "tokens": sum(len(one.tokens) for one in inputs), "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("images", "layers", "removed", "w8a8"))
    main(parser.parse_args().part)
