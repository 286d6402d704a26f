"""Quantization writes one block at a time, resumes after an interruption, and ends with the same bytes."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcpmq.artifact import MANIFEST
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError, DatasetError, OutputError, ScaleError
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import BLOCKS_DIRECTORY, QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Item


@pytest.fixture
def plan(tiny_checkpoint: Path) -> Plan:
    """The plan of phone-int4 for the tiny checkpoint."""
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _interrupted_after(blocks: int):  # type: ignore[no-untyped-def]
    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        if label != "quantizing":
            yield from items
            return
        yield from items[:blocks]
        raise KeyboardInterrupt

    return progress


def test_every_weight_is_near_its_original(tiny_int4: QuantizedModel, tiny_checkpoint: Path) -> None:
    """The relative error is at most 12 % with 4 bits and 1 % with 8; kept tensors are equal."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    bounds = {"int4-g32": 0.12, "int8-g32": 0.01}
    for name, spec in tiny_int4.specs.items():
        original, weight = checkpoint.load(spec), tiny_int4.load(name)
        if isinstance(weight, QTensor):
            error = (dequantize(weight) - original.float()).norm() / original.float().norm()
            assert error < bounds[str(weight.scheme)], name
        else:
            assert torch.equal(weight, original), name


def test_samples_and_text_files_are_checked_before_a_block_is_written(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The last sample is too long, or the tokenizer is missing: nothing is written, also of uncalibrated blocks."""
    samples, copy = shutil.copytree(tiny_set, tmp_path / "set"), shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    with (samples / "manifest.jsonl").open("a") as manifest:
        manifest.write("\n" + json.dumps({"id": "long", "prompt": "word " * 3000, "answer": "Yes"}))
    plan = make_plan(Checkpoint.open(copy), Recipe.load("calibrated-int4"))

    with pytest.raises(DatasetError, match="`long` has .* tokens"):
        quantize(plan, tmp_path / "out", SampleSet.open(samples))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no `tokenizer.json`"):
        quantize(make_plan(Checkpoint.open(copy), Recipe.load("phone-int4")), tmp_path / "out")

    assert {path.name for path in tmp_path.iterdir()} == {"set", "copy"}


@pytest.mark.parametrize(("method", "warns"), [("gptq", True), ("rtn-imatrix", False)])
def test_few_calibration_tokens_are_notified_before_the_work(
    small_checkpoint: Path, tiny_set: Path, tmp_path: Path, method: str, warns: bool
) -> None:
    """Ten samples warn a method that compensates errors; the importance of columns needs fewer tokens."""
    weights = {"language.layers.0.mlp.up": "int8-g32"}
    recipe = Recipe.model_validate({"name": "one", "method": method, "weights": weights})
    made, notices = make_plan(Checkpoint.open(small_checkpoint), recipe), list[str]()

    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        if label == "calibrating":
            raise KeyboardInterrupt
        yield from items

    with pytest.raises(KeyboardInterrupt):
        quantize(made, tmp_path / "out", SampleSet.open(tiny_set), progress, notify=notices.append)

    assert [text.endswith("16,384 tokens are recommended") for text in notices] == [True] * warns


def test_the_same_inputs_give_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    """Two runs with different numbers of threads write equal files."""
    first = _bytes(quantize(plan, tmp_path / "first").path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert _bytes(quantize(plan, tmp_path / "second").path) == first
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(plan: Plan, tmp_path: Path, blocks: int) -> None:
    """Finished blocks are not quantized again, and the files equal those of an uninterrupted run."""
    whole = _bytes(quantize(plan, tmp_path / "whole").path)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, out, progress=_interrupted_after(blocks))
    assert not out.exists()
    finished = sorted((tmp_path / ".out.partial" / BLOCKS_DIRECTORY).iterdir())
    assert len(finished) == blocks
    times = [file.stat().st_mtime_ns for file in finished]

    quantize(plan, out)

    assert _bytes(out) == whole
    assert [(out / BLOCKS_DIRECTORY / file.name).stat().st_mtime_ns for file in finished] == times


def test_an_unfinished_run_of_another_recipe_is_an_error(plan: Plan, tmp_path: Path) -> None:
    """Only the same request resumes a run."""
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", progress=_interrupted_after(1))

    with pytest.raises(OutputError, match="unfinished run of another recipe"):
        quantize(make_plan(plan.checkpoint, Recipe.load("phone-int8")), tmp_path / "out")


def test_a_finished_run_of_the_same_plan_is_returned(plan: Plan, tmp_path: Path) -> None:
    """A second run changes no file."""
    quantize(plan, tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}

    quantize(plan, tmp_path / "out")

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == times


def test_a_finished_run_of_another_recipe_is_not_overwritten(plan: Plan, tmp_path: Path) -> None:
    """An output folder with other content is an error."""
    quantize(plan, tmp_path / "out")

    with pytest.raises(OutputError, match="not empty"):
        quantize(make_plan(plan.checkpoint, Recipe.load("phone-int8")), tmp_path / "out")


def test_a_weight_that_is_not_finite_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The error names the weight with the NaN, and nothing is written."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]["llm.lm_head.weight"]
    tensors = load_file(shard)
    tensors["llm.lm_head.weight"][3, 5] = float("nan")
    save_file(tensors, shard)

    with pytest.raises(CheckpointError, match=r"`head` \(`llm\.lm_head\.weight`\) has values that are not finite"):
        quantize(make_plan(Checkpoint.open(copy), Recipe.load("phone-int4")), tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_overflow_in_f16_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A value too large for f16 is an error at conversion."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]["llm.lm_head.weight"]
    tensors = load_file(shard)
    tensors["llm.lm_head.weight"][0, 0] = 1e6
    save_file(tensors, shard)
    recipe = Recipe.model_validate({"name": "half", "weights": {"head": "f16"}})

    with pytest.raises(ScaleError, match=r"`head` has a value of 9.99e.05, too large for `f16`"):
        quantize(make_plan(Checkpoint.open(copy), recipe), tmp_path / "out")


def test_the_manifest_records_every_decision(tiny_int4: QuantizedModel) -> None:
    """The manifest has the recipe, hashes, versions, and a reason for each weight."""
    manifest = json.loads((tiny_int4.path / MANIFEST).read_text())

    assert manifest["recipe"]["name"] == "phone-int4"
    assert len(manifest["source"]["sha256"]) == 64
    assert manifest["versions"].keys() == {"mcpmq", "torch", "gguf", "xllamacpp"}
    assert {weight["reason"] for weight in manifest["weights"]} >= {"neither matrix nor table", '"language.*"'}
