"""Measure image-token budgets, layer removal and W8A8 on the reference checkpoint.

    python -m benchmarks.structured images|layers|w8a8

Images: artifacts that differ in the largest number of slices, on the samples whose images are cut into slices. Layers:
artifacts without layers, on the held-out set. W8A8: int8 weights with float inputs, and with int8 inputs, in PyTorch
and in the engines.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, STARTER, WORK, provenance, run_command, write_result
from benchmarks.markdown import estimates, load_result, percent, table, thousandths, with_provenance
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import limit_images
from mcpmq.compression_tables import ImagesTable, LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.families.images import open_image
from mcpmq.mixed_precision.layer_removal import measure_removal
from mcpmq.recipe import Recipe, to_toml
from mcpmq.report import Report
from mcpmq.report.report import ArtifactResult
from mcpmq.system.progress import silent

FOLDER = WORK / "structured"
SLICES = (9, 6, 4, 3, 2, 1)
REMOVED, CALIBRATION_SAMPLES, EVALUATION_SAMPLES = 3, 40, 120
METRICS = ("kl_divergence", "top_1_agreement", "exact_match_change", "perplexity_ratio")
W8A8 = {
    "W8A16": {"smooth": "none", "method": "rtn", "activations": {}},
    "W8A8": {"smooth": "none", "method": "rtn", "activations": {"language.*": "s8-token"}},
    "W8A8, SmoothQuant": {"smooth": "smoothquant", "method": "rtn", "activations": {"language.*": "s8-token"}},
}


def main(part: str) -> None:
    """Run one part."""
    shutil.rmtree(FOLDER / part, ignore_errors=True)
    (FOLDER / part).mkdir(parents=True)
    rows = {"images": _images, "layers": _layers, "w8a8": _w8a8}[part](FOLDER / part)
    write_result(f"structured-{part}", provenance("benchmarks.structured") | rows)


def _result(result: ArtifactResult) -> dict[str, Any]:
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


def _evaluate(artifacts: list[Path], eval_set: Path, out: Path, *options: object) -> Report:
    sets = ("--against", REFERENCE, "--eval-set", eval_set, "--threads", "1", "--no-answers")
    run_command("evaluate", *artifacts, *sets, "--out", out, *options, out=out)
    return Report.load(out)


def _images(work: Path) -> dict[str, Any]:
    sliced = _sliced_set(work / "sliced")
    for count in SLICES:
        options = ("--recipe", "phone-int8", "--format", "gguf", "--max-slices", count)
        run_command("quantize", REFERENCE, work / f"{count}-slices", *options, out=work / f"{count}-slices")
    report = _evaluate([work / f"{count}-slices" for count in SLICES], sliced, work / "report")
    pairs = zip(SLICES, report.artifacts, strict=True)
    rows = [
        {"max_slice_nums": count, "image_tokens": _mean_tokens(sliced, count), **_result(one)} for count, one in pairs
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


def _layers(work: Path) -> dict[str, Any]:
    samples = SampleSet.open(STARTER).spread(CALIBRATION_SAMPLES)
    checkpoint, curves, artifacts = Checkpoint.open(REFERENCE), {}, []
    for component, most in (("language", REMOVED), ("vision", 1)):
        found = measure_removal(checkpoint, component, most, samples, 1, silent)
        curves[component] = found.to_dict()
        for step in found.steps:
            cut = found.to_recipe_table().model_dump()
            cut |= {"remove": step.layers, "influence": [found.influences[one] for one in step.layers]}
            table_of_step = LayersTable.model_validate(cut | {"kl_divergence": step.kl_divergence})
            artifacts.append(_without(table_of_step, work, f"{component}-{len(step.layers)}"))
    artifacts.append(_without(None, work, "all"))
    report = _evaluate(artifacts, HELDOUT, work / "report", "--samples", EVALUATION_SAMPLES)
    rows = [{"artifact": path.name, **_result(one)} for path, one in zip(artifacts, report.artifacts, strict=True)]
    return {"calibration_samples": len(samples), "samples": EVALUATION_SAMPLES, "curves": curves, "rows": rows}


def _without(layers: LayersTable | None, work: Path, name: str) -> Path:
    recipe, file = Recipe.load("phone-int8").model_copy(update={"layers": layers}), work / f"{name}.toml"
    file.write_text(to_toml(recipe.to_dict()))
    run_command("quantize", REFERENCE, work / name, "--recipe", file, "--format", "gguf", out=work / name)
    return work / name


def _w8a8(work: Path) -> dict[str, Any]:
    rows = []
    for number, (name, settings) in enumerate(W8A8.items()):
        folder, file = work / str(number), work / f"{number}.toml"
        recipe = {"name": f"w8-{number}", **settings, "weights": {"language.*": "int8-row"}}
        file.write_text(to_toml(Recipe.model_validate(recipe).to_dict()))
        run_command("quantize", REFERENCE, folder / "quantized", "--recipe", file, "--calibration", STARTER, out=folder)
        for format_name in ("compressed-tensors", "onnx"):
            target = folder / format_name
            run_command("export", folder / "quantized", target, "--format", format_name, out=target)
        names = ["quantized", "compressed-tensors", "onnx"]
        options = ("--samples", EVALUATION_SAMPLES)
        report = _evaluate([folder / one for one in names], HELDOUT, folder / "report", *options)
        rows += [
            {"kind": name, "artifact": one, **_result(found)}
            for one, found in zip(names, report.artifacts, strict=True)
        ]
    return {"samples": EVALUATION_SAMPLES, "rows": rows}


def _kld(row: Mapping[str, Any], group: str) -> str:
    return thousandths(estimates(row["groups"][group])["kl_divergence"])


def images_table() -> str:
    """Return the table of image-token budgets."""
    result, rows = load_result("structured-images"), []
    for row in result["rows"]:
        phases, tokens = row["phases"], row["image_tokens"]
        milliseconds = 1000 * tokens / phases["prefill_tokens_per_second"]
        exact = percent(estimates(row["exact_match"])["image"])
        cache = row["kv_cache_bytes_per_token"] * tokens / 1000
        cells = [f"{tokens:.1f}", f"{milliseconds:.1f}", f"{cache:.0f}", _kld(row, "image"), exact]
        rows.append([str(row["max_slice_nums"]), *cells])
    headings = (
        "`max_slice_nums`",
        "image tokens",
        "prefill, ms",
        "KV cache, kB",
        "mean KLD, 10⁻³ nats",
        "exact match, %",
    )
    return with_provenance(table(headings, rows, text_columns=1), result)


def layers_table() -> str:
    """Return the table of layer removal."""
    result, rows = load_result("structured-layers"), []
    steps = {
        f"{component}-{len(step['layers'])}": step
        for component, curve in result["curves"].items()
        for step in curve["steps"]
    }
    for row in sorted(result["rows"], key=lambda one: one["artifact"]):
        step = steps.get(row["artifact"])
        removed = ", ".join(step["layers"]) if step else "none"
        predicted = f"{1000 * step['kl_divergence']:.1f}" if step else ""
        cells = [f"{row['nbytes'] / 1e6:.2f}", predicted, _kld(row, "image"), _kld(row, "text")]
        rows.append([removed, *cells])
    headings = ("removed", "MB", "KLD of the float model", "image KLD, 10⁻³ nats", "text KLD, 10⁻³ nats")
    return with_provenance(table(headings, rows, text_columns=1), result)


def w8a8_table() -> str:
    """Return the table of int8 inputs."""
    result = load_result("structured-w8a8")
    rows = [
        [row["kind"], row["artifact"], f"{row['nbytes'] / 1e6:.2f}", _kld(row, "image"), _kld(row, "text")]
        for row in result["rows"]
    ]
    headings = ("kind", "artifact", "MB", "image KLD, 10⁻³ nats", "text KLD, 10⁻³ nats")
    return with_provenance(table(headings, rows, text_columns=2), result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("images", "layers", "w8a8"))
    main(parser.parse_args().part)
