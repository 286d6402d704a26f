"""Mixtures of experts in torch, GGUF and compressed-tensors, with calibration, smoothing and an importance matrix."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader
from PIL import Image
from torch import Tensor, nn

from mcpmq.artifact import Artifact
from mcpmq.calibrate.imatrix import LANGUAGE, write_imatrix
from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import FormatError
from mcpmq.estimate.forecast import forecast
from mcpmq.export import export
from mcpmq.families.blocks import block_name, is_expert
from mcpmq.families.encoding import encode_sample
from mcpmq.families.inputs import Inputs
from mcpmq.formats import check_plan
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.rounding.smoothing import weight_scalings
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.runners.transformers import load_artifact
from tests.commands import Command
from tests.loss_tools import answer_losses
from tests.smoothing_tools import random_scales, scaled_logits
from tests.tiny_families import (
    EXPERT_FAMILIES,
    MINICPM_V_4_7_MOE,
    QWEN3_5_MOE,
    QWEN3_VL_MOE,
    TinyFamily,
    without_expert,
)

pytestmark = pytest.mark.filterwarnings("ignore")
INT4 = {"*": "int8-g32", "language.*": "int4-g32"}
CALIBRATED = {"method": "gptq", "targets": "model"}


def _only(*families: TinyFamily) -> pytest.MarkDecorator:
    """Return the decorator of tests for some families."""
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name, indirect=True)


IN_GGUF = _only(QWEN3_VL_MOE, QWEN3_5_MOE)
ONE_FAMILY = _only(QWEN3_VL_MOE)
WITH_SHARED_EXPERT = _only(QWEN3_5_MOE, MINICPM_V_4_7_MOE)


@pytest.fixture(scope="module", params=EXPERT_FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    """Every tiny family with experts."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint whose experts are in stacks, as published."""
    return Checkpoint.open(family.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Two text samples and two image samples."""
    folder, answers = tmp_path_factory.mktemp("set"), ("three circles are there", "red sign")
    lines = [{"id": f"text-{number}", "prompt": "How many?", "answer": answer} for number, answer in enumerate(answers)]
    for number, answer in enumerate(answers):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 150 - 90 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append({"id": f"image-{number}", "prompt": "What?", "answer": answer, "image": f"{number}.png"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return SampleSet.open(folder)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, samples: SampleSet) -> list[Inputs]:
    """The encoded samples."""
    processor = checkpoint.family.open_processor(checkpoint.path)
    return [encode_sample(processor, sample) for sample in samples.samples]


@pytest.fixture(scope="module")
def published(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint in the class of transformers, whose experts are stacks."""
    module: Any = getattr(transformers, checkpoint.config["architectures"][0])
    return module.from_pretrained(checkpoint.path, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def plan_of(checkpoint: Checkpoint, weights: dict[str, str], **recipe: str) -> Plan:
    return make_plan(checkpoint, Recipe.model_validate({"name": "experts", **recipe, "weights": weights}))


def arguments_of(checkpoint: Checkpoint, one: Inputs) -> dict[str, Tensor]:
    arrays = checkpoint.family.open_processor(checkpoint.path).model_inputs(one)
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


@torch.inference_mode()
def test_logits_are_those_of_transformers(checkpoint: Checkpoint, published: Any, inputs: list[Inputs]) -> None:
    """One expert at a time is in memory, and the logits are equal to those of the stacked experts."""
    found = list(open_torch(checkpoint.path, 1).run(inputs, lambda _, rows: np.stack(list(rows))))

    for one, logits in zip(inputs, found, strict=True):
        positions = torch.from_numpy(one.measured - 1)
        expected = published(**arguments_of(checkpoint, one), logits_to_keep=positions, use_cache=False).logits[0]
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def full(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The model in float32."""
    return quantize(plan_of(checkpoint, {"*": "f32"}), tmp_path_factory.mktemp("full") / "codes")


@IN_GGUF
def test_gguf_has_the_losses_of_torch(full: QuantizedModel, inputs: list[Inputs], tmp_path: Path) -> None:
    """Stacks, router, metadata and shared expert are those of llama.cpp; image samples differ by its GELU in F16."""
    runner = open_gguf(export(full, "gguf", tmp_path / "gguf").path, 1, f32_attention=True)
    expected, found = (answer_losses(one, inputs) for one in (open_torch(full.path, 1), runner))
    difference = [np.abs(one - other).max() for one, other in zip(expected, found, strict=True)]

    assert runner.notes == ()
    assert max(difference[:2]) < 2e-5  # text
    assert max(difference[2:]) < 1e-3


@IN_GGUF
def test_stacks_have_the_layout_of_llama_cpp(full: QuantizedModel, tmp_path: Path) -> None:
    """A stack has the dimensions columns, rows, experts; the router is F32."""
    [file] = export(full, "gguf", tmp_path / "gguf").component_files("language")
    reader = GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    experts, hidden = full.architecture.language.experts, full.architecture.language.hidden_size
    assert experts

    assert tensors["blk.0.ffn_up_exps.weight"].shape.tolist() == [hidden, experts.intermediate_size, experts.count]
    assert tensors["blk.1.ffn_down_exps.weight"].shape.tolist() == [experts.intermediate_size, hidden, experts.count]
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    stack = tensors["blk.0.ffn_gate_exps.weight"].data
    np.testing.assert_array_equal(stack[3], full.load("language.layers.0.experts.3.mlp.gate").numpy())  # type: ignore[union-attr]
    prefix = full.architecture.language.gguf_architecture
    keys = ("expert_count", "expert_used_count", "expert_feed_forward_length")
    values = [reader.get_field(f"{prefix}.{key}").contents() for key in keys]  # type: ignore[union-attr]
    assert values == [experts.count, experts.count_per_token, experts.intermediate_size]


def test_compressed_tensors_has_the_losses_of_torch(
    checkpoint: Checkpoint, inputs: list[Inputs], tmp_path: Path
) -> None:
    """Each expert has packed matrices of its own; transformers computes the same losses in float32."""
    plan = plan_of(checkpoint, {"language.*": "int4-g32"})
    quantized = quantize(plan, tmp_path / "codes")
    artifact = export(quantized, "compressed-tensors", tmp_path / "hf")
    runner = load_artifact(HuggingFaceArtifact.open(artifact.path), torch.float32)

    expected, found = (np.concatenate(answer_losses(one, inputs)) for one in (open_torch(quantized.path, 1), runner))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert _forecast_sizes(plan, "compressed-tensors") == _sizes(artifact)
    card = (artifact.path / "README.md").read_text()
    assert ("has no mapping" in card) == (checkpoint.family.name == "qwen3-vl-moe")


@pytest.fixture(scope="module")
def calibrated(checkpoint: Checkpoint, samples: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The model with GPTQ and targets of the original model."""
    plan = plan_of(checkpoint, INT4, **CALIBRATED)
    return quantize(plan, tmp_path_factory.mktemp("calibrated") / "codes", samples)


@ONE_FAMILY
def test_experts_are_counted_by_their_tokens(calibrated: QuantizedModel) -> None:
    """The manifest has the number of experts with few tokens; each has the tokens that its matrices share."""
    manifest = calibrated.artifact.manifest
    tokens = Counter[str]()
    for record in manifest.weights:
        if is_expert(record.name):
            counted = sum((record.calibration_tokens or {}).values())
            assert tokens.setdefault(block_name(record.name), counted) == counted
    assert manifest.experts
    assert manifest.experts.count == len(tokens) == 8 * calibrated.architecture.language.num_layers
    assert manifest.experts.without_tokens == list(tokens.values()).count(0)
    assert manifest.experts.min_tokens == min(tokens.values())
    assert 0 < manifest.experts.with_few_tokens <= len(tokens)


@IN_GGUF
def test_a_calibrated_model_has_the_same_losses_in_gguf(
    checkpoint: Checkpoint, calibrated: QuantizedModel, inputs: list[Inputs], tmp_path: Path
) -> None:
    """Codes of a calibrated model agree between engines, and the forecast has the bytes of the files."""
    artifact = export(calibrated, "gguf", tmp_path / "gguf")
    runners = open_torch(calibrated.path, 1), open_torch(checkpoint.path, 1), open_gguf(artifact.path, 1)
    torch_losses, original, found = (np.concatenate(answer_losses(one, inputs)) for one in runners)

    assert np.abs(found - torch_losses).mean() < 0.5 * np.abs(torch_losses - original).mean()
    plan = plan_of(checkpoint, INT4, **CALIBRATED)
    assert _forecast_sizes(plan, "gguf") == _sizes(artifact)


@WITH_SHARED_EXPERT
def test_smoothing_does_not_change_the_logits(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Scales between the matrices of an expert, and of the shared expert, keep the logits."""
    plan = plan_of(checkpoint, INT4, smooth="awq", method="gptq")
    mapped = {mapping.smooth_layer for found in plan.smoothing_mappings.values() for mapping in found}
    original, smoothed = (scaled_logits(plan, inputs, one) for one in ({}, weight_scalings(random_scales(plan))))

    assert "language.layers.0.experts.7.mlp.up" in mapped
    assert "language.layers.0.shared.mlp.up" in mapped
    for expected, equal in zip(original, smoothed, strict=True):
        assert float((expected - equal).abs().max()) < 1e-4 * float(expected.abs().max())


@torch.inference_mode()
def test_the_importance_matrix_has_the_routed_tokens(
    checkpoint: Checkpoint, published: Any, samples: SampleSet, inputs: list[Inputs], tmp_path: Path
) -> None:
    """Counts and squares of every expert equal those of the routers of the class of transformers."""
    counts, squares = Counter[str](), dict[str, Tensor]()

    def observe(layer: int, args: tuple[Tensor, ...]) -> None:
        hidden, index, _ = args
        for token, expert in ((token, expert) for token, row in enumerate(index.tolist()) for expert in row):
            name = f"language.layers.{layer}.experts.{expert}.mlp.up"
            counts[name] += 1
            squares[name] = squares.get(name, torch.zeros(hidden.shape[1])) + hidden[token] ** 2

    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, args, layer=number: observe(layer, args))
        for number, layer in enumerate(published.model.language_model.layers)
    ]
    for one in inputs:
        published(**arguments_of(checkpoint, one), use_cache=False)
    for hook in hooks:
        hook.remove()

    matrix = write_imatrix(checkpoint, samples, tmp_path / "imatrix")
    tokens = {record.name: sum((record.calibration_tokens or {}).values()) for record in matrix.manifest.weights}
    assert {name: count for name, count in tokens.items() if is_expert(name) and name.endswith("up")} == counts
    [file] = matrix.component_files(LANGUAGE)
    stored = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    for layer in range(checkpoint.architecture.language.num_layers):
        names = [f"language.layers.{layer}.experts.{expert}.mlp.up" for expert in range(8)]
        assert stored[f"blk.{layer}.ffn_up_exps.weight.counts"].ravel().tolist() == [counts[name] for name in names]
    means = read_importance(matrix.path, checkpoint).mean_squares
    for name, total in squares.items():
        torch.testing.assert_close(means[name][0], total / counts[name], rtol=1e-4, atol=1e-6)


@_only(QWEN3_5_MOE)
def test_a_conversion_suggests_no_search_and_measures_each_kind_of_calibration_sample(
    checkpoint: Checkpoint, samples: SampleSet, mcpmq: Command, tmp_path: Path
) -> None:
    """`search` refuses experts; every fifth sample is a text, and the images of the set are found nevertheless."""
    lines = [
        {"id": str(number), "prompt": f"What? {number}", "answer": "red sign"}
        | ({} if number % 5 == 4 else {"image": f"{number}.png"})
        for number in range(6)
    ]
    for number in range(6):
        pixels = np.random.default_rng(9 + number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sets = "--calibration", tmp_path, "--eval-set", samples.path
    recipe = "--recipe", "calibrated-gguf-int4", "--format", "gguf", "--threads", "1"
    found = mcpmq("convert", checkpoint.path, tmp_path / "out", *recipe, *sets)

    assert found.exit_code == 0
    assert "mcpmq search" not in found.stderr
    assert "no calibration sample" not in found.stdout


def test_an_expert_without_tokens_is_rounded_to_nearest(samples: SampleSet, tmp_path: Path) -> None:
    """A router that never selects an expert: its codes are those of rounding to nearest, and the manifest counts it."""
    checkpoint = Checkpoint.open(without_expert(QWEN3_VL_MOE.build(tmp_path / "tiny"), expert=5))
    one = SampleSet(samples.path, samples.samples[:1])
    weights = {"*": "keep", "language.layers.0.*": "int4-g32"}
    quantized = quantize(plan_of(checkpoint, weights, method="gptq"), tmp_path / "gptq", one)
    nearest = quantize(plan_of(checkpoint, weights, method="rtn"), tmp_path / "rtn")

    name = "language.layers.0.experts.5.mlp.down"
    record = quantized.records[name]
    assert sum((record.calibration_tokens or {}).values()) == 0
    assert record.method == "rtn"
    assert record.deviation == "rounded to nearest: no calibration token is routed to the expert"
    assert torch.equal(quantized.load(name).codes, nearest.load(name).codes)  # type: ignore[union-attr]
    assert quantized.artifact.manifest.experts
    assert quantized.artifact.manifest.experts.without_tokens >= 1


@ONE_FAMILY
def test_gguf_has_one_type_for_the_experts_of_a_layer(checkpoint: Checkpoint) -> None:
    """The error names two experts of different types, before a weight is read."""
    plan = plan_of(checkpoint, {"language.*": "int4-g32", "language.layers.1.experts.2.mlp.up": "int8-g32"})

    with pytest.raises(FormatError, match=r"experts\.2\.mlp\.up.*int8-g32.*experts\.0\.mlp\.up.*int4-g32"):
        check_plan(plan, "gguf")


@pytest.mark.parametrize("name", ["gguf", "onnx", "bnb", "gptq", "awq", "mlx"])
def test_other_formats_are_rejected_with_a_reason(checkpoint: Checkpoint, name: Any) -> None:
    """Nothing is written in a format whose engine does not run quantized experts, or not the projector of 4.7."""
    if name == "gguf" and checkpoint.family.name != "minicpm-v-4.7-moe":
        return
    with pytest.raises(FormatError, match="does not support") as caught:
        check_plan(plan_of(checkpoint, {"language.*": "int4-g32"}), name)

    assert caught.value.hint


def _sizes(artifact: Artifact) -> set[tuple[str, int]]:
    return {(record.path, record.nbytes) for record in artifact.manifest.files}


def _forecast_sizes(plan: Plan, name: Any) -> set[tuple[str, int]]:
    [layout] = forecast(plan, [name], 1024).formats
    assert {weight.name for weight in layout.files.weights} >= {
        tensor.name for tensor in plan.tensors if is_expert(tensor.name)
    }
    return {(file.path, file.nbytes) for file in layout.files.files}
