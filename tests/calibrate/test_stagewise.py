"""Rounding to the outputs of the original model: statistics by brute force, equal bytes, records, less error."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate.paired_inputs import QuantizedBlock
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError
from mcpmq.execution import torch_model
from mcpmq.execution.spilling import SpilledTensor, SpillFile
from mcpmq.families.encoding import encode_sample
from mcpmq.families.family import TensorSpec
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.rounding.shrinkage import ShrinkageChoice
from mcpmq.rounding.stats import InputStats
from mcpmq.system.progress import Item
from mcpmq.system.torch_threads import torch_threads
from tests.tiny import make_uneven

WEIGHTS = {"vision": 0.25, "text": 1.0, "answer": 2.0, "audio": 1.0}
LANGUAGE, VISION = "llm.model.layers.1", "vpm.encoder.layers.1"
# A matrix of every stage of a layer, and the module that reads the residual stream; "" is the layer itself.
STAGES = (
    (VISION, "self_attn.out_proj", "layer_norm2"),
    (VISION, "mlp.fc1", None),
    (VISION, "mlp.fc2", ""),
    (LANGUAGE, "self_attn.q_proj", None),
    (LANGUAGE, "self_attn.o_proj", "post_attention_layernorm"),
    (LANGUAGE, "mlp.gate_proj", None),
    (LANGUAGE, "mlp.down_proj", ""),
)


def recipe(**more: Any) -> Recipe:
    weights = {"*": "int8-g32", "language.*": "int4-g32"}
    return Recipe.model_validate({"name": "drift", "method": "gptq", "targets": "model", "weights": weights, **more})


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    """The small checkpoint, opened."""
    return Checkpoint.open(small_checkpoint)


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> Plan:
    """A plan of the small checkpoint."""
    return make_plan(checkpoint, recipe())


@pytest.fixture(scope="module")
def samples(mixed_set: SampleSet) -> SampleSet:
    """Two samples with an image and two without."""
    return SampleSet(mixed_set.path, tuple(mixed_set.samples[index] for index in (0, 4, 6, 7)))


@pytest.fixture(scope="module")
def whole(plan: Plan, samples: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The result of an uninterrupted run."""
    return quantize(plan, tmp_path_factory.mktemp("drift") / "whole", samples)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- statistics by brute force ----------------------------------------------------------------------------------------


def _model(checkpoint: Checkpoint, quantized: QuantizedModel | None, original: Sequence[str] = ()) -> nn.Module:
    """The plain model with quantized weights, but original ones from the first name in `original` on."""
    names = [spec.name for spec in checkpoint.specs]
    first = min((names.index(name) for name in original), default=len(names))

    def floats(spec: TensorSpec) -> Tensor:
        if quantized is None or (names.index(spec.name) >= first and spec.role == "matrix"):
            return torch_model.to_float(checkpoint.load(spec), spec)
        return torch_model.to_float(quantized.load(spec.name), spec)

    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.load_block(block, floats)
    return model.module


def _observe(
    model: nn.Module, layer: str, matrix: str, reader: str | None, arguments: Mapping[str, Any]
) -> list[Tensor]:
    """The inputs of a matrix and the residual stream, [tokens, columns], in a plain forward pass."""
    found: list[Tensor] = []
    keep = lambda value: found.append((value[0] if isinstance(value, tuple) else value).flatten(0, -2))  # noqa: E731
    hooks = [model.get_submodule(f"{layer}.{matrix}").register_forward_pre_hook(lambda _, args: keep(args))]
    if reader == "":
        hooks.append(model.get_submodule(layer).register_forward_hook(lambda _, __, output: keep(output)))
    elif reader:
        hooks.append(model.get_submodule(f"{layer}.{reader}").register_forward_pre_hook(lambda _, args: keep(args)))
    with torch.no_grad():
        model(**arguments, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_statistics_are_those_of_plain_forward_passes(
    checkpoint: Checkpoint, samples: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hessians and drift equal brute-force sums: the matrices before a stage are rounded, also those of its block."""
    recorded: list[tuple[tuple[str, ...], InputStats, Tensor]] = []
    collect = QuantizedBlock.collect_stats

    def recording(self: QuantizedBlock, stage: Any, *arguments: Any, **more: Any) -> dict[str, tuple[InputStats, ...]]:
        found = collect(self, stage, *arguments, **more)
        for parts in list(found.values())[:1]:
            assert parts[0].drift is not None
            recorded.append((stage.parameters, parts[0], parts[0].drift.products.clone()))
        return found

    def to_nearest(weight: Tensor, scheme: Any, stats: InputStats | None) -> Any:
        return ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)

    def without_drift(stats: InputStats) -> None:
        assert stats.drift is not None
        stats.drift.products.zero_()

    monkeypatch.setattr("mcpmq.calibrate.observers.bfloat16_matmul", nullcontext)  # rounds where a CPU has it
    monkeypatch.setattr(QuantizedBlock, "collect_stats", recording)
    monkeypatch.setitem(ROUNDING_FUNCTIONS, "gptq", to_nearest)
    monkeypatch.setattr("mcpmq.calibrate.stagewise.solve_drift", without_drift)
    monkeypatch.setattr("mcpmq.rounding.weight.choose_shrinkage", lambda *_: ShrinkageChoice(0.1))
    quantized = quantize(make_plan(checkpoint, recipe(token_weights=WEIGHTS)), tmp_path / "out", samples)

    processor = checkpoint.family.open_processor(checkpoint.path)
    encoded = [encode_sample(processor, one) for one in samples]
    original = _model(checkpoint, None)
    hub_names = {spec.hub_name: spec.name for spec in checkpoint.specs}
    for layer, matrix, reader in STAGES:
        is_language = layer.startswith("llm")
        rounded = _model(checkpoint, quantized, [hub_names[f"{layer}.{matrix}.weight"]])
        found = [one for one in recorded if f"{matrix}.weight" in one[0]]
        _, stats, products = found[-1 if is_language else 1]  # vision layers come first
        gram, expected = torch.zeros_like(stats.gram).double(), torch.zeros_like(products).double()
        for sample in (one for one in encoded if one.slices or is_language):
            arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(sample).items()}
            before = _observe(original, layer, matrix, reader, arguments)[-1].double()
            x, *others = (one.double() for one in _observe(rounded, layer, matrix, reader, arguments))
            weights = _token_weights(sample) if is_language else torch.ones(len(x)).double()
            gram += (x.T * weights) @ x
            expected += (x.T * weights) @ (before - (others[0] if others else x))
        assert float((stats.gram - gram).abs().max()) < 1e-4 * float(gram.abs().max()), matrix
        assert float((products - expected).abs().max()) < 2e-2 * float(expected.abs().max()), matrix


def _token_weights(sample: Any) -> Tensor:
    inside = {position for begin, end in sample.image_bounds.tolist() for position in range(begin, end)}
    kinds = (
        "vision" if index in inside else "answer" if index >= sample.answer_start else "text"
        for index in range(len(sample.tokens))
    )
    return torch.tensor([WEIGHTS[kind] for kind in kinds], dtype=torch.float64)


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_run_interrupted_between_blocks_resumes_with_the_same_bytes(
    plan: Plan, samples: SampleSet, whole: QuantizedModel, tmp_path: Path
) -> None:
    """Both streams of hidden states are computed again; four threads give the same bytes as one."""

    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        if label != "calibrating":
            yield from items
            return
        yield from items[:8]  # one of two layers of the language model is finished
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", samples, progress)
    with torch_threads(4):
        resumed = quantize(plan, tmp_path / "out", samples)

    assert _bytes(resumed.path) == _bytes(whole.path)


def test_states_in_a_file_give_the_same_bytes(
    plan: Plan, samples: SampleSet, whole: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states, and the recorded ones of the original model, are in a file; at the end it is removed."""
    monkeypatch.setattr("mcpmq.calibrate.forward.must_spill", lambda *_: True)
    monkeypatch.setattr("mcpmq.execution.spilling.MIN_NBYTES", 1)
    stored, store = list[int](), SpillFile.store

    def counting(file: SpillFile, tensor: Tensor) -> SpilledTensor:
        stored.append(tensor.nbytes)
        return store(file, tensor)

    monkeypatch.setattr(SpillFile, "store", counting)

    spilled = quantize(plan, tmp_path / "out", samples)

    assert _bytes(spilled.path) == _bytes(whole.path)
    assert len(stored) > 2 * len(STAGES)


def test_the_manifest_has_the_targets_and_the_record_of_every_matrix(whole: QuantizedModel, plan: Plan) -> None:
    """Tokens and shrinkage are recorded as with other targets."""
    assert whole.artifact.manifest.recipe["targets"] == "model"
    for tensor in plan.tensors:
        record = whole.records[tensor.name]
        if tensor.spec.role == "matrix":
            assert record.method in ("gptq", "rtn")
            assert record.calibration_tokens is not None
            assert (record.shrinkage is None) == (record.method == "rtn")


def test_outputs_are_closer_to_those_of_the_original(
    checkpoint: Checkpoint, samples: SampleSet, whole: QuantizedModel, tmp_path: Path
) -> None:
    """The hidden states after the last layer differ less from the original than with the outputs of layers."""
    other = quantize(make_plan(checkpoint, recipe(targets="layer")), tmp_path / "layer", samples)
    processor = checkpoint.family.open_processor(checkpoint.path)
    models = [_model(checkpoint, one) for one in (None, whole, other)]
    errors = [0.0, 0.0]
    for one in samples:
        inputs = processor.model_inputs(encode_sample(processor, one))
        arguments = {name: torch.from_numpy(value) for name, value in inputs.items()}
        first, *others = (_observe(model, "llm.model.layers.1", "mlp.down_proj", "", arguments)[1] for model in models)
        errors = [total + float((first - found).square().sum()) for total, found in zip(errors, others, strict=True)]

    assert errors[0] < 0.95 * errors[1]


def test_smoothing_is_selected_by_the_outputs_of_the_original(
    checkpoint: Checkpoint, samples: SampleSet, tmp_path: Path
) -> None:
    """All candidates are rounded in stages; the held-out error of a block includes that of earlier blocks."""
    uneven = make_uneven(shutil.copytree(checkpoint.path, tmp_path / "uneven"))
    weights = {"language.*": "int4-g32"}
    plan = make_plan(Checkpoint.open(uneven), recipe(smooth="awq", weights=weights))

    quantized = quantize(plan, tmp_path / "smooth", samples)

    errors = quantized.artifact.manifest.held_out_errors
    assert errors is not None
    first, second = (errors[f"language.layers.{layer}"] for layer in range(2))
    assert list(first) == ["gptq", "awq+gptq"]
    assert any(record.smoothing_exponent for record in quantized.records.values())
    assert min(second.values()) > min(first.values())


def test_a_matrix_without_tokens_is_an_error(checkpoint: Checkpoint, samples: SampleSet, tmp_path: Path) -> None:
    """A weight of zero for all tokens of the language model leaves nothing to round for."""
    weights = {"vision": 1.0, "text": 0.0, "answer": 0.0, "audio": 0.0}
    texts = SampleSet(samples.path, samples.samples[2:])
    only_language = {"language.*": "int4-g32"}
    plan = make_plan(checkpoint, recipe(token_weights=weights, weights=only_language))
    with pytest.raises(DatasetError, match="receives no token"):
        quantize(plan, tmp_path / "out", texts)
