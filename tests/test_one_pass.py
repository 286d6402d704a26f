"""Conversion in one pass: the bytes of two passes, without a quantized model."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.commands import recipe_argument
from mcpmq.artifact import Artifact, FormatName
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, FormatError, OutputError
from mcpmq.export import export
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.system import file_hash
from mcpmq.system.progress import Item


@pytest.fixture
def plan(tiny_checkpoint: Path) -> Plan:
    """The plan of phone-int4 for the tiny checkpoint."""
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "mcpmq.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("phone-int4", "gguf"),
        ("quality-int4", "gguf"),
        ("full", "gguf"),
        ("phone-int4", "onnx"),
        ("language-int8", "bnb"),
        ("language-nf4", "bnb"),
        ("language-int4", "gptq"),
    ],
)
def test_the_files_are_those_of_two_passes(
    recipe: str, name: FormatName, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The manifests differ only by the hash of the quantized model; the recorded hashes are those of the files."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load(recipe_argument(recipe)))
    two = export(quantize(plan, tmp_path / "quantized"), name, tmp_path / "two")

    one = convert_in_one_pass(plan, name, tmp_path / "one")

    assert _bytes(one.path) == _bytes(two.path)
    assert one.manifest == two.manifest.model_copy(update={"quantized_sha256": None})
    file_hash._known.clear()  # the files are read again
    one.verify()
    assert {path.name for path in tmp_path.iterdir()} == {"quantized", "one", "two"}


def test_bytes_do_not_depend_on_threads(plan: Plan, tmp_path: Path) -> None:
    """One and three threads write equal files."""
    first = _bytes(convert_in_one_pass(plan, "gguf", tmp_path / "first").path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 2)
    try:
        assert _bytes(convert_in_one_pass(plan, "gguf", tmp_path / "second").path) == first
    finally:
        torch.set_num_threads(threads)


def test_an_interrupted_conversion_starts_over(plan: Plan, tmp_path: Path) -> None:
    """Nothing is left of the first run, and the second one writes the files of an undisturbed one."""

    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        yield from items[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_in_one_pass(plan, "gguf", tmp_path / "out", progress)
    assert not list(tmp_path.iterdir())

    whole = convert_in_one_pass(plan, "gguf", tmp_path / "whole")
    assert _bytes(convert_in_one_pass(plan, "gguf", tmp_path / "out").path) == _bytes(whole.path)


def test_an_earlier_result_is_returned_to_both(plan: Plan, tmp_path: Path) -> None:
    """A second run, and an export of the same codes, change no file; another recipe is an error."""
    out = convert_in_one_pass(plan, "gguf", tmp_path / "out").path
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}

    convert_in_one_pass(plan, "gguf", out)
    quantized = quantize(plan, tmp_path / "quantized")
    export(quantized, "gguf", out)

    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == times
    with pytest.raises(OutputError, match="not empty"):
        convert_in_one_pass(make_plan(plan.checkpoint, Recipe.load("phone-int8")), "gguf", out)
    convert_in_one_pass(plan, "gguf", export(quantized, "gguf", tmp_path / "exported").path)


def _with_tensor(checkpoint: Path, copy: Path, name: str, factor: float) -> Plan:
    """Return the plan of a copy of a checkpoint with one multiplied weight."""
    shutil.copytree(checkpoint, copy)
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = tensors[name] * factor
    save_file(tensors, shard)
    return make_plan(Checkpoint.open(copy), Recipe.load("phone-int4"))


def test_powers_of_two_between_neighbors_take_two_passes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The result is that of two passes, and no quantized model remains."""
    plan = _with_tensor(tiny_checkpoint, tmp_path / "copy", "llm.model.layers.0.mlp.up_proj.weight", 2.0**-18)
    two = export(quantize(plan, tmp_path / "quantized"), "gguf", tmp_path / "two")
    assert any(record.row_exponents for record in two.manifest.weights)

    one = convert_in_one_pass(plan, "gguf", tmp_path / "one")
    again = convert_in_one_pass(plan, "gguf", tmp_path / "one")

    assert _bytes(one.path) == _bytes(two.path)
    assert one.manifest == two.manifest == again.manifest
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "quantized", "one", "two"}


def test_weights_that_are_not_finite_are_errors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The error names the weight, and nothing is written."""
    plan = _with_tensor(tiny_checkpoint, tmp_path / "copy", "llm.lm_head.weight", float("inf"))

    with pytest.raises(CheckpointError, match=r"`head` \(`llm\.lm_head\.weight`\) has values that are not finite"):
        convert_in_one_pass(plan, "gguf", tmp_path / "out")

    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_calibration_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A recipe with calibration, or with schemes that the format does not support, is an error; nothing is written."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for recipe, name in (("calibrated-int4", "gguf"), ("quality-int4", "onnx")):
        with pytest.raises(FormatError, match="needs calibration|cannot store"):
            convert_in_one_pass(make_plan(checkpoint, Recipe.load(recipe_argument(recipe))), name, tmp_path / "out")  # type: ignore[arg-type]

    assert not list(tmp_path.iterdir())


def test_a_file_is_not_read_again_for_its_hash(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash in the manifest is that of the writing thread."""
    read: list[str] = []
    digest = hashlib.file_digest

    def recorded(stream: Any, name: str) -> object:
        read.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", recorded)

    artifact = convert_in_one_pass(plan, "gguf", tmp_path / "out")

    assert not [name for name in read if name.endswith(".gguf")]
    assert Artifact.open(artifact.path).manifest.kind == "gguf"
    assert not isinstance(artifact, QuantizedModel)
