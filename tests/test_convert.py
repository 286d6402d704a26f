"""The conversion from paths: validation before work, held-out samples, shared codes."""

import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.commands import recipe_argument
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.conversion_folder import quantized_artifacts
from mcpmq.convert import convert
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError, DatasetError, FormatError, OutputError, RecipeError
from mcpmq.evaluate import Settings
from mcpmq.mixed_precision import Budget
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report
from mcpmq.report.evaluation import evaluate
from mcpmq.system.output import lock_folder

SETTINGS = Settings(threads=1)


def run(checkpoint: Path, out: Path, samples: Path, **options: Any) -> Report:
    """Convert to GGUF, with the evaluation set equal to the calibration set, unless options differ."""
    defaults = {"formats": ["gguf"], "calibration": samples, "eval_set": samples, "settings": SETTINGS}
    return convert(checkpoint, out, **{**defaults, **options})


def test_an_evaluation_set_is_measured_completely(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """With an evaluation set no calibration sample is held out."""
    report = run(tiny_checkpoint, tmp_path / "out", tiny_set, bits=8)

    assert report.eval_set.samples == 10
    assert not report.eval_set.held_out_from_calibration
    assert report.artifacts[0].recipe == "phone-int8"


def test_without_an_evaluation_set_a_fifth_is_held_out(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Two of ten samples are measured, and the report records that they are held out."""
    report = run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int8", formats=[], eval_set=None)

    assert report.eval_set.samples == 2
    assert report.eval_set.held_out_from_calibration


def test_every_format_gets_its_recipe(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 bits as GGUF and GPTQ have two recipes; no calibration set is required by either, and no quantized model."""

    class ReachedEvaluation(Exception):
        pass

    def compare(_: object, artifacts: list[Artifact], *__: object, **___: object) -> None:
        raise ReachedEvaluation(*[artifact.manifest.recipe["name"] for artifact in artifacts])

    monkeypatch.setattr(import_module("mcpmq.convert"), "compare", compare)
    with pytest.raises(ReachedEvaluation) as reached:
        run(tiny_checkpoint, tmp_path / "out", tiny_set, bits=8, formats=["gptq", "gguf"], calibration=None)

    assert sorted(reached.value.args) == ["language-int8", "phone-int8"]
    names = [artifact.path.name for artifact in quantized_artifacts(tmp_path / "out")]
    assert names == ["gguf", "gptq"]


def test_codes_are_shared_between_formats(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A second format uses the codes of the first if they were kept; `rtn` records no calibration set."""
    codes = tmp_path / "out" / "quantized"
    run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4", keep_quantized=True)
    times = {file: file.stat().st_mtime_ns for file in codes.rglob("*")}

    run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4", formats=["onnx"])

    assert {file: file.stat().st_mtime_ns for file in codes.rglob("*")} == times
    assert QuantizedModel.open(codes).artifact.manifest.calibration_set is None
    assert [artifact.path for artifact in quantized_artifacts(tmp_path / "out")] == [codes]


def test_one_format_has_no_quantized_model(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A second format in a run of its own does not require one either; several formats share one."""
    out = tmp_path / "out"
    for formats in (["gguf"], ["onnx"]):
        run(tiny_checkpoint, out, tiny_set, recipe="phone-int4", formats=formats)
        assert not (out / "quantized").exists()
    times = {file: file.stat().st_mtime_ns for file in (out / "gguf").rglob("*.gguf")}

    run(tiny_checkpoint, out, tiny_set, recipe="phone-int4", formats=["gguf", "onnx"])

    assert (out / "quantized" / "mcpmq.json").exists()
    assert {file: file.stat().st_mtime_ns for file in (out / "gguf").rglob("*.gguf")} == times


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": recipe_argument("quality-int4"), "formats": ["gguf", "onnx"]}, FormatError, "`onnx` cannot store"),
        ({"recipe": "phone-int4", "formats": ["ggml"]}, FormatError, "`ggml` is not a format"),
        ({"recipe": "calibrated-int4"}, DatasetError, "shares 10 images, videos or texts"),
        ({"recipe": "phone-int4", "eval_set": "missing"}, DatasetError, "no `manifest.jsonl`"),
        ({"recipe": "phone-int4", "bits": 4}, RecipeError, "both or none"),
        ({}, RecipeError, "both or none"),
        ({"bits": 5}, RecipeError, "5 bits have no recipe"),
        ({"bits": 8, "formats": ["awq"]}, RecipeError, "`awq` has no recipe with 8 bits"),
        ({"bits": 4, "calibration": None}, DatasetError, "recipe `calibrated-gguf-int4` needs a calibration set"),
        ({"bits": 8, "calibration": None, "eval_set": None}, DatasetError, "neither a calibration set nor an"),
    ],
)
def test_invalid_input_is_an_error_before_work(
    options: dict[str, Any], error: type[Exception], message: str, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """A format that does not support the recipe, an overlapping or missing evaluation set, no recipe or two."""
    with pytest.raises(error, match=message):
        run(tiny_checkpoint, tmp_path / "out", tiny_set, **options)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", [None, Budget(file_nbytes=10**9)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "narrow.png"}, "aspect ratio"),
        ({"prompt": "<image>\nWhat?"}, "special token `<image>`"),
        ({"answer": "word " * 3000}, "more than the context length"),
    ],
)
def test_samples_that_cannot_be_measured_are_found_before_work(
    budget: Budget | None,
    changes: dict[str, str],
    message: str,
    tiny_checkpoint: Path,
    tiny_set: Path,
    tmp_path: Path,
) -> None:
    """Every sample of the evaluation set is encoded before a weight is quantized or a recipe is searched."""
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    Image.new("RGB", (1000, 1)).save(held_out / "narrow.png")
    line = {"id": "a", "prompt": "What?", "answer": "Red"} | changes
    (held_out / "manifest.jsonl").write_text(json.dumps(line))

    with pytest.raises(DatasetError, match=message):
        run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4", eval_set=held_out, budget=budget)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_missing_text_files_are_found_before_work(
    name: str, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The error names the checkpoint, not an output."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / name).unlink()

    with pytest.raises(CheckpointError, match=str(copy)):
        run(copy, tmp_path / "out", tiny_set, recipe="phone-int4")

    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_a_format_cannot_store_is_found_before_work(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The tokenizer is converted for the forecast; llama.cpp does not have this pre-tokenizer."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(FormatError, match="pre-tokenizer"):
        run(copy, tmp_path / "out", tiny_set, recipe="phone-int4")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("checkpoint", "is the checkpoint"),
        ("set", "is the calibration set"),
        ("foreign", "is not empty and has no output of mcpmq: `precious.txt`"),
        ("codes", "quantized` exists and is not empty"),
        ("texts", "report.md` is not a report that mcpmq wrote"),
        ("link", "is a symbolic link"),
        ("foreign/precious.txt", "is not a folder"),
    ],
)
def test_outputs_that_are_not_of_mcpmq_are_errors_before_work(
    place: str, message: str, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Neither an input nor a file of the user is written to."""
    checkpoint, samples = tmp_path / "checkpoint", tmp_path / "set"
    shutil.copytree(tiny_checkpoint, checkpoint)
    shutil.copytree(tiny_set, samples)
    for file in ("foreign/precious.txt", "codes/quantized/precious.txt", "texts/report.md", "texts/onnx/mcpmq.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    with pytest.raises(OutputError, match=message):
        run(checkpoint, tmp_path / place, samples, recipe="phone-int4")

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_output_inside_of_the_checkpoint_is_like_any_other(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The checkpoint keeps its files and hash, and a second run does not repeat anything."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    files = {path: path.read_bytes() for path in checkpoint.iterdir()}

    for _ in range(2):
        run(checkpoint, checkpoint / "out", tiny_set, recipe="phone-int4")
    run(checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4")

    assert {path: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()} == files
    for file in (tmp_path / "out" / "gguf").iterdir():
        assert (checkpoint / "out" / "gguf" / file.name).read_bytes() == file.read_bytes()


def test_two_conversions_do_not_write_one_folder(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """The second one, also an evaluation, is an error that names the process."""
    with lock_folder(tmp_path / "out"):
        for work in (
            lambda: run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4"),
            lambda: evaluate(
                [], Checkpoint.open(tiny_checkpoint), SampleSet.open(tiny_set), SETTINGS, out=tmp_path / "out"
            ),
        ):
            with pytest.raises(OutputError, match=f"out` is being written by process {os.getpid()}"):
                work()
