"""Convert the reference checkpoint with every recipe, evaluate the artifacts, and write benchmarks/results.

python -m benchmarks.run                              the reference: accuracy, sizes, memory, seconds
python -m benchmarks.run --report reference           one report again, of the artifacts that are there
python -m benchmarks.run --real-size 28               random weights of MiniCPM-V 2.6's size: memory and seconds
python -m benchmarks.run --real-size 28 --one-pass    the same, followed by conversions in one pass
python -m benchmarks.run --real-size 28 --calibrated  the same with calibration on a fifth of the starter set
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.commands import (
    REFERENCE,
    RESULTS,
    STARTER,
    WORK,
    CommandResult,
    evaluate,
    provenance,
    recipe_argument,
    run_command,
    write_result,
)
from benchmarks.real_size import write_checkpoint

REFERENCE_WORK, REAL_SIZE_WORK = WORK / "reference", WORK / "real-size"
CONVERSIONS = {
    "phone-int4": ("gguf", "onnx"),
    "phone-int8": ("gguf", "onnx"),
    "quality-int4": ("gguf",),
    "full": ("gguf", "onnx"),
    "calibrated-gguf-int4": ("gguf",),
    "calibrated-int4": ("gguf", "onnx"),
    "calibrated-quality-int4": ("gguf",),
    "calibrated-language-int4": ("gptq", "awq", "compressed-tensors"),
    "language-nf4": ("bnb",),
    "language-int8": ("bnb",),
}
REAL_SIZE_CONVERSIONS = {"phone-int4": ("gguf", "onnx"), "quality-int4": ("gguf",)}
REAL_SIZE_ONE_PASS = REAL_SIZE_CONVERSIONS | {"phone-int8": ("gguf",), "language-int4": ("compressed-tensors",)}


def run_conversions(
    checkpoint: Path, work: Path, formats_by_recipe: Mapping[str, tuple[str, ...]]
) -> Iterator[CommandResult]:
    """Quantize with every recipe and export to its formats."""
    for recipe, formats in formats_by_recipe.items():
        codes = work / recipe / "quantized"
        calibration = ["--calibration", STARTER] if recipe.startswith("calibrated") else []
        yield run_command("quantize", checkpoint, codes, "--recipe", recipe_argument(recipe), *calibration, out=codes)
        for name in formats:
            yield run_command("export", codes, work / recipe / name, "--format", name, out=work / recipe / name)


def run_one_pass(
    checkpoint: Path, work: Path, formats_by_recipe: Mapping[str, tuple[str, ...]]
) -> Iterator[CommandResult]:
    """Write every format in one pass, without a quantized model; an artifact is removed when it is measured."""
    for recipe, formats in formats_by_recipe.items():
        for name in formats:
            out = work / recipe / name
            words = ("--recipe", recipe_argument(recipe), "--format", name)
            yield run_command("quantize", checkpoint, out, *words, out=out)
            shutil.rmtree(out)


def write_commands(name: str, commands: list[CommandResult]) -> None:
    """Record the cost of commands."""
    write_result(name, provenance("benchmarks.run") | {"commands": [asdict(command) for command in commands]})


def evaluate_artifacts(name: str, artifacts: list[Path], *options: str) -> None:
    """Record the report of artifacts of the reference checkpoint."""
    report = evaluate(artifacts, REFERENCE_WORK / name, "--no-cache", *options)
    (RESULTS / f"{name}.json").write_text(report.model_dump_json() + "\n")


def artifacts(recipe: str, *formats: str) -> list[Path]:
    """Return the artifacts of a recipe, in these formats or in all."""
    return [REFERENCE_WORK / recipe / name for name in formats or CONVERSIONS[recipe]]


def reports() -> dict[str, tuple[list[Path], tuple[str, ...]]]:
    """Return the artifacts and the options of every report: that of `make demo` first, the others with controls."""
    best, full = artifacts("calibrated-quality-int4", "gguf"), artifacts("full")
    defaults = artifacts("calibrated-gguf-int4") + artifacts("calibrated-int4", "onnx")
    controls = artifacts("phone-int4") + artifacts("quality-int4", "gguf")
    packed = artifacts("calibrated-language-int4", "gptq", "compressed-tensors")
    return {
        "reference": (defaults + artifacts("phone-int8", "onnx") + best, ()),
        "calibrated": (controls + artifacts("calibrated-int4", "gguf") + best, ()),
        "engine-baseline": (full, ()),
        "hugging-face": (packed + artifacts("language-nf4") + artifacts("language-int8"), ()),
        "engine-preprocessing": (artifacts("full", "gguf"), ("--engine-preprocessing",)),
        "shuffled": (artifacts("phone-int4", "gguf"), ("--shuffle-images",)),
    }


def run_reference() -> None:
    """Convert and evaluate the reference checkpoint."""
    shutil.rmtree(REFERENCE_WORK, ignore_errors=True)
    write_commands("conversion", list(run_conversions(REFERENCE, REFERENCE_WORK, CONVERSIONS)))
    for name in reports():
        run_report(name)


def run_report(name: str) -> None:
    """Evaluate the artifacts of one report."""
    paths, options = reports()[name]
    evaluate_artifacts(name, paths, *options)


def run_real_size(layers: int) -> None:
    """Convert at the published widths, where one matrix has a gigabyte."""
    write_commands(f"real-size-{layers}", convert_real_size(layers))


def run_one_pass_real_size(layers: int) -> None:
    """Convert at the published widths in two passes, and then in one."""
    results = convert_real_size(layers)
    results += run_one_pass(REAL_SIZE_WORK / "checkpoint", REAL_SIZE_WORK, REAL_SIZE_ONE_PASS)
    write_commands(f"real-size-{layers}-one-pass", results)


def convert_real_size(layers: int) -> list[CommandResult]:
    """Write the checkpoint, and convert it in two passes; the artifacts of a recipe are removed."""
    write_checkpoint(REAL_SIZE_WORK / "checkpoint", layers)
    results = list[CommandResult]()
    for recipe, formats in REAL_SIZE_CONVERSIONS.items():
        results += run_conversions(REAL_SIZE_WORK / "checkpoint", REAL_SIZE_WORK, {recipe: formats})
        shutil.rmtree(REAL_SIZE_WORK / recipe)
    return results


def run_calibrated_real_size(layers: int) -> None:
    """Calibrate at the published widths, where a Hessian has 1.4 gigabytes."""
    checkpoint, codes = REAL_SIZE_WORK / "checkpoint", REAL_SIZE_WORK / "calibrated-int4" / "quantized"
    write_checkpoint(checkpoint, layers)
    samples = write_starter_subset(REAL_SIZE_WORK / "samples")
    options = ("--recipe", "calibrated-int4", "--calibration", samples, "--device", "cpu")
    write_commands(f"real-size-{layers}-calibrated", [run_command("quantize", checkpoint, codes, *options, out=codes)])


def write_starter_subset(folder: Path) -> Path:
    """Write every fifth sample of the starter set."""
    shutil.copytree(STARTER / "images", folder / "images")
    lines = (STARTER / "manifest.jsonl").read_text().splitlines()
    (folder / "manifest.jsonl").write_text("\n".join(lines[::5]) + "\n")
    return folder


def main() -> None:
    """Run the benchmark that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-size", type=int, metavar="LAYERS")
    parser.add_argument("--calibrated", action="store_true", help="with --real-size")
    parser.add_argument("--one-pass", action="store_true", help="with --real-size")
    parser.add_argument("--report", choices=list(reports()), help="evaluate the artifacts of one report again")
    options = parser.parse_args()
    if options.report:
        run_report(options.report)
    elif not options.real_size:
        run_reference()
    else:
        shutil.rmtree(REAL_SIZE_WORK, ignore_errors=True)
        run = run_one_pass_real_size if options.one_pass else run_real_size
        (run_calibrated_real_size if options.calibrated else run)(options.real_size)


if __name__ == "__main__":
    main()
