"""Commands with LoRA adapters: equal to those on the merged checkpoint, with the adapter in every record."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.adapter import ADAPTER_WEIGHTS
from mcpmq.convert import convert
from mcpmq.evaluate import Settings
from mcpmq.qtensor import IntegerTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report
from tests.commands import Command
from tests.fake_releases import with_license

RANK = 4


@pytest.fixture(scope="module")
def adapter(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the queries and of the down projections of the language model, large enough to change answers."""
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(5), {}
    for spec in Checkpoint.open(small_checkpoint).specs:
        if spec.hub_name.startswith("llm.") and spec.hub_name.endswith(("q_proj.weight", "down_proj.weight")):
            name = f"base_model.model.{spec.hub_name.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, spec.shape[1], generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(spec.shape[0], RANK, generator=generator)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2}))
    return folder


@pytest.fixture(scope="module")
def merged(small_checkpoint: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with merged weights, computed without mcpmq."""
    folder = Path(shutil.copytree(small_checkpoint, tmp_path_factory.mktemp("merged") / "merged"))
    parts = load_file(adapter / ADAPTER_WEIGHTS)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{module}.lora_A.weight" in parts:
                product = parts[f"{module}.lora_B.weight"] @ parts[f"{module}.lora_A.weight"] * (2 / RANK)
                tensors[name] = (tensors[name].float() + product).bfloat16()
        save_file(tensors, shard, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def converted(small_checkpoint: Path, adapter: Path, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion to GGUF with the adapter."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(
        small_checkpoint,
        out,
        formats=["gguf"],
        adapters=[adapter],
        recipe="phone-int4",
        eval_set=tiny_set,
        settings=Settings(2),
        keep_quantized=True,
    )
    return out


def test_codes_are_those_of_the_merged_checkpoint(
    converted: Path, merged: Path, mcpmq: Command, tmp_path: Path
) -> None:
    """Quantization of the merged weights gives the same codes and scales, except in a few rounded sums."""
    ran = mcpmq("quantize", merged, tmp_path / "merged", "--recipe", "phone-int4")
    assert ran.exit_code == 0, ran.stderr

    ours, theirs = QuantizedModel.open(converted / "quantized"), QuantizedModel.open(tmp_path / "merged")

    for spec in ours.specs.values():
        first, second = ours.load(spec.name), theirs.load(spec.name)
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert isinstance(first, IntegerTensor)
            assert isinstance(second, IntegerTensor)
            assert (first.codes != second.codes).float().mean() < 1e-3, spec.name


def test_a_trimmed_vocabulary_is_that_of_the_merged_checkpoint(
    small_checkpoint: Path, adapter: Path, merged: Path, mcpmq: Command, tmp_path: Path
) -> None:
    """An adapter and a trimmed vocabulary give the file of the merged checkpoint with the same vocabulary."""
    artifacts = []
    for name, source, *lora in (("ours", small_checkpoint, "--lora", adapter), ("theirs", merged)):
        options = ("--recipe", "phone-int4", "--format", "gguf", "--trim-vocabulary", "288", *lora)
        ran = mcpmq("quantize", source, tmp_path / name, *options)
        assert ran.exit_code == 0, ran.stderr
        artifacts.append(Artifact.open(tmp_path / name))

    ours, theirs = artifacts
    [record] = ours.manifest.source.adapters
    assert (record.name, theirs.manifest.source.adapters) == ("tuned", ())
    assert ours.manifest.vocabulary == theirs.manifest.vocabulary is not None
    first, second = (_tensors(artifact) for artifact in artifacts)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert (values != second[name]).mean() < 1e-3, name


def _tensors(artifact: Artifact) -> dict[str, NDArray[np.uint8]]:
    """Return the bytes of every tensor of the language model."""
    [file] = artifact.component_files("language")
    return {one.name: one.data.view(np.uint8) for one in GGUFReader(file).tensors}


def test_the_report_measures_the_merged_original(
    converted: Path, merged: Path, tiny_set: Path, mcpmq: Command, tmp_path: Path
) -> None:
    """Losses of the original are those of the merged checkpoint, and the artifact is compared with it."""
    options = ("--recipe", "phone-int4", "--format", "gguf", "--eval-set", tiny_set, "--no-cache")
    ran = mcpmq("convert", merged, tmp_path / "out", *options)
    assert ran.exit_code == 0, ran.stderr

    ours, theirs = Report.load(converted), Report.load(tmp_path / "out")

    assert ours.checkpoint.name == "small+tuned"
    for first, second in zip(ours.original.samples, theirs.original.samples, strict=True):
        assert first.losses == pytest.approx(second.losses, abs=2e-3)
    assert ours.artifacts[0].differences["image"].kl_divergence.value == pytest.approx(
        theirs.artifacts[0].differences["image"].kl_divergence.value, rel=0.05
    )


def test_the_adapter_is_in_manifest_and_file_name(converted: Path, adapter: Path) -> None:
    """The source has the name and the hash of the adapter; the GGUF file is named after both."""
    artifact = Artifact.open(converted / "gguf")
    [record] = artifact.manifest.source.adapters

    assert (record.name, len(record.sha256)) == ("tuned", 64)
    assert {file.name for file in artifact.component_files("language")} == {"small-tuned-Q4_0.gguf"}


@pytest.mark.parametrize("with_adapter", [True, False])
def test_evaluate_needs_the_adapter(
    with_adapter: bool,
    converted: Path,
    small_checkpoint: Path,
    adapter: Path,
    tiny_set: Path,
    mcpmq: Command,
    tmp_path: Path,
) -> None:
    """Without the adapter the checkpoint is another original."""
    lora = ("--lora", adapter) if with_adapter else ()
    options = ("--eval-set", tiny_set, "--out", tmp_path / "report", "--no-cache", "--no-answers", "--samples", 2)
    ran = mcpmq("evaluate", converted / "gguf", "--against", small_checkpoint, *lora, *options)

    assert ran.exit_code == (0 if with_adapter else 1), ran.stderr
    assert with_adapter or "was made from `small+tuned`" in ran.stderr


def test_a_finished_run_of_another_adapter_is_not_reused(
    converted: Path, small_checkpoint: Path, adapter: Path, tiny_set: Path, mcpmq: Command, tmp_path: Path
) -> None:
    """A conversion into the same folder with changed adapter weights is an error."""
    other = Path(shutil.copytree(adapter, tmp_path / "tuned"))
    tensors = load_file(other / ADAPTER_WEIGHTS)
    save_file({name: value * 2 for name, value in tensors.items()}, other / ADAPTER_WEIGHTS)

    options = ("--recipe", "phone-int4", "--format", "gguf", "--eval-set", tiny_set)
    ran = mcpmq("convert", small_checkpoint, converted, "--lora", other, *options)

    assert ran.exit_code == 1
    assert "another checkpoint, `small+tuned`" in ran.stderr


def test_plan_shows_the_adapter(small_checkpoint: Path, adapter: Path, mcpmq: Command) -> None:
    """The heading has the names of checkpoint and adapter."""
    ran = mcpmq("plan", small_checkpoint, "--recipe", "phone-int4", "--lora", adapter, "--format", "gguf")

    assert ran.exit_code == 0, ran.stderr
    assert "small+tuned" in ran.stdout


def test_package_names_the_adapter_on_the_card(
    converted: Path, small_checkpoint: Path, adapter: Path, mcpmq: Command, tmp_path: Path
) -> None:
    """The release records the adapter, and its card names it with its hash."""
    original = with_license(small_checkpoint, tmp_path)
    arguments = ("--source", original, "--lora", adapter, "--report", converted)

    ran = mcpmq("package", converted / "gguf", tmp_path / "release", *arguments)

    assert ran.exit_code == 0, ran.stderr
    card = (tmp_path / "release" / "README.md").read_text()
    [record] = Artifact.open(converted / "gguf").manifest.source.adapters
    assert f"the LoRA adapter `tuned`, SHA-256 `{record.sha256}`" in card


def test_run_asks_the_merged_original(small_checkpoint: Path, merged: Path, adapter: Path, mcpmq: Command) -> None:
    """The answer of the checkpoint with its adapter is that of the merged checkpoint, not that of the base."""
    options = ("--max-tokens", 8, "--json", "--threads", 1)

    def answer(path: Path, *lora: object) -> str:
        ran = mcpmq("run", path, "What does the sign say?", *options, *lora)
        assert ran.exit_code == 0, ran.stderr
        return str(json.loads(ran.stdout)["answer"])

    assert answer(small_checkpoint, "--lora", adapter) == answer(merged) != answer(small_checkpoint)


def test_an_artifact_takes_no_adapter(converted: Path, adapter: Path, mcpmq: Command) -> None:
    """Adapters are merged before quantization."""
    ran = mcpmq("run", converted / "gguf", "Say?", "--lora", adapter)

    assert ran.exit_code == 1
    assert "cannot be merged" in ran.stderr
