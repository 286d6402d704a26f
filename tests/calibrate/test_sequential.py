"""Sequential calibration: statistics of every matrix, quantized blocks before it, method selection, resumed runs."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcpmq.artifact import MANIFEST, Manifest
from mcpmq.calibrate import forward, observers
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.execution import chunked_matmul, spilling, torch_model
from mcpmq.families.family import TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import sincos_2d
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.rounding.shrinkage import ShrinkageChoice
from mcpmq.rounding.stats import InputStats
from mcpmq.system.progress import Item
from mcpmq.system.torch_threads import torch_threads
from tests.tiny import SMALL_CONFIG, build_checkpoint, make_uneven

BLOCKS = 11  # of the small model
CALIBRATED = (4, 5, 6, 8, 9, 11)  # positions of the blocks with matrices; three files need no calibration
WEIGHTS = {"vision": 0.25, "text": 1.0, "answer": 2.0, "audio": 1.0}


def recipe(**more: Any) -> Recipe:
    fields = {"name": "calibrated", "method": "gptq", "weights": {"*": "int8-g32", "language.*": "int4-g32"}}
    return Recipe.model_validate({**fields, **more})


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    """The small checkpoint, opened."""
    return Checkpoint.open(small_checkpoint)


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> Plan:
    """A plan of the small checkpoint with GPTQ."""
    return make_plan(checkpoint, recipe())


@pytest.fixture(scope="module")
def whole(plan: Plan, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The result of an uninterrupted run."""
    return quantize(plan, tmp_path_factory.mktemp("calibrated") / "whole", mixed_set)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _killed_after(blocks: int) -> Any:
    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        if label != "calibrating":
            yield from items
            return
        yield from items[:blocks]
        raise KeyboardInterrupt

    return progress


# --- statistics -------------------------------------------------------------------------------------------------------


def _matrix_inputs(model: nn.Module, sample: Inputs, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The input [tokens, columns] of every matrix of the model in a plain forward pass, by hub name."""
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(partial(_keep, inputs, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    outputs: dict[str, Tensor] = {}
    for name in ("ln_q", "ln_kv", "ln_post"):
        module = model.resampler.get_submodule(name)  # type: ignore[union-attr]
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output})))
    with torch.no_grad():
        model(**arguments, use_cache=False)
        for handle in handles:
            handle.remove()
        inputs = {name: rows.flatten(0, -2) for name, rows in inputs.items()}
        return inputs | (_resampler_inputs(model.resampler, outputs, arguments) if sample.slices else {})


def _keep(inputs: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    inputs[name] = args[0]


def _resampler_inputs(
    resampler: Any, outputs: Mapping[str, Tensor], arguments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inputs of the resampler's matrices, with attention by its definition, slice by slice."""
    attention, sizes = resampler.attn, arguments["target_sizes"].tolist()
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    queries, keys, mixed = outputs["ln_q"], [], []
    values = outputs["ln_kv"].split([height * width for height, width in sizes])
    for value, (height, width) in zip(values, sizes, strict=True):
        keys.append(value + sincos_2d(height, width, value.shape[1], value.device, value.dtype))
        q, k, v = (
            (x @ weight.T + bias).unflatten(1, (attention.num_heads, -1)).transpose(0, 1)
            for x, weight, bias in zip((queries, keys[-1], value), weights, biases, strict=True)
        )
        probabilities = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed.append((probabilities @ v).transpose(0, 1).flatten(1))
    return {
        "resampler.attn.in_proj_weight|0": queries.repeat(len(sizes), 1),
        "resampler.attn.in_proj_weight|1": torch.cat(keys),
        "resampler.attn.in_proj_weight|2": torch.cat(list(values)),
        "resampler.attn.out_proj.weight": torch.cat(mixed),
        "resampler.proj": outputs["ln_post"].flatten(0, -2),
    }


def _model(checkpoint: Checkpoint, quantized: QuantizedModel, original: set[str]) -> nn.Module:
    """The plain model with original weights in the `original` blocks and quantized weights in all others."""
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)

    def floats(spec: TensorSpec) -> Tensor:
        stored = checkpoint.load(spec) if _block(spec.name) in original else quantized.load(spec.name)
        return torch_model.to_float(stored, spec)

    for block in model.blocks:
        model.load_block(block, floats)
    return model.module


def _block(name: str) -> str:
    return ".".join(name.split(".")[: 3 if ".layers." in name else 1])


def test_statistics_are_those_of_plain_forward_passes(
    checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hessians and token counts equal brute-force sums for every matrix, with all earlier blocks quantized."""
    recorded: list[InputStats] = []

    def recording(weight: Tensor, scheme: Any, stats: InputStats | None) -> QTensor:
        assert stats is not None
        recorded.append(stats)
        return ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)

    monkeypatch.setattr("mcpmq.calibrate.observers.bfloat16_matmul", nullcontext)  # rounds where a CPU has it
    monkeypatch.setitem(ROUNDING_FUNCTIONS, "gptq", recording)
    monkeypatch.setattr("mcpmq.rounding.weight.choose_shrinkage", lambda *_: ShrinkageChoice(0.1))
    quantized = quantize(make_plan(checkpoint, recipe(token_weights=WEIGHTS)), tmp_path / "out", mixed_set)

    processor = MiniCpmVProcessor.open(checkpoint.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in mixed_set]
    matrices = [spec for spec in checkpoint.specs if spec.role == "matrix"]
    order, remaining = list(dict.fromkeys(_block(spec.name) for spec in matrices)), iter(recorded)
    for index, block in enumerate(order):
        model = _model(checkpoint, quantized, set(order[index:]))
        inputs = [_matrix_inputs(model, one, _tensors(processor, one)) for one in samples]
        for spec in (spec for spec in matrices if _block(spec.name) == block):
            for key in (f"{spec.hub_name}|{part}" for part in range(3)) if "qkv" in spec.name else (spec.hub_name,):
                pairs = zip(inputs, samples, strict=True)
                _compare(next(remaining), spec, [(one[key], sample) for one, sample in pairs if key in one])
    assert next(remaining, None) is None


def _tensors(processor: MiniCpmVProcessor, sample: Inputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in processor.model_inputs(sample).items()}


def _compare(stats: InputStats, spec: TensorSpec, inputs: list[tuple[Tensor, Inputs]]) -> None:
    gram, tokens = torch.zeros_like(stats.gram, dtype=torch.float64), dict.fromkeys(WEIGHTS, 0)
    for rows, sample in inputs:
        modalities = _modalities(sample) if spec.component in ("language", "head") else ["vision"] * len(rows)
        for row, modality in zip(rows.double(), modalities, strict=True):
            if spec.component == "head" and modality == "vision":
                continue
            tokens[modality] += 1
            gram += (WEIGHTS[modality] if spec.component in ("language", "head") else 1) * torch.outer(row, row)
    assert stats.token_counts == tokens, spec.name
    assert sum(tokens.values()) > 0
    assert float((stats.gram - gram).abs().max()) < 1e-4 * float(gram.abs().max()), spec.name


def _modalities(sample: Inputs) -> list[str]:
    """The modality of every token, one token at a time."""
    inside = {position for begin, end in sample.image_bounds.tolist() for position in range(begin, end)}
    return [
        "vision" if position in inside else "answer" if position >= sample.answer_start else "text"
        for position in range(len(sample.tokens))
    ]


# --- interrupted and resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interruptions", [[3], [8], range(BLOCKS)], ids=["third", "eighth", "all"])
def test_a_run_interrupted_between_blocks_resumes_with_the_same_bytes(
    plan: Plan, mixed_set: SampleSet, whole: QuantizedModel, tmp_path: Path, interruptions: Sequence[int]
) -> None:
    """Once, or after every block: finished blocks are not written again, and the result is that of a whole run."""
    finished: dict[str, int] = {}
    for blocks in interruptions:
        with pytest.raises(KeyboardInterrupt):
            quantize(plan, tmp_path / "out", mixed_set, _killed_after(blocks))
        written = _write_times(tmp_path / ".out.partial" / "blocks")
        assert finished.items() <= written.items()
        finished = written
    assert len(finished) == 3 + sum(interruptions[-1] >= position for position in CALIBRATED)

    resumed = quantize(plan, tmp_path / "out", mixed_set)

    assert _bytes(resumed.path) == _bytes(whole.path)
    assert finished.items() <= _write_times(resumed.path / "blocks").items()


def _write_times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_run_interrupted_before_its_manifest_builds_no_model(
    plan: Plan, mixed_set: SampleSet, whole: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sample runs again when all block files exist."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mcpmq.quantize"], "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(plan, tmp_path / "out", mixed_set)
    monkeypatch.setattr(forward, "build_model", None)

    assert _bytes(quantize(plan, tmp_path / "out", mixed_set).path) == _bytes(whole.path)


def test_the_interrupted_runs_cover_all_blocks(checkpoint: Checkpoint) -> None:
    """BLOCKS is the number of blocks of the small model."""
    assert len(torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs).blocks) == BLOCKS


@pytest.mark.parametrize("rounded", [1, 9, 20])
def test_a_run_interrupted_inside_a_block_quantizes_it_again(
    plan: Plan,
    mixed_set: SampleSet,
    whole: QuantizedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounded: int,
) -> None:
    """A partly quantized block leaves no file."""
    remaining, gptq = iter(range(rounded)), ROUNDING_FUNCTIONS["gptq"]

    def interrupting(weight: Tensor, scheme: Any, stats: InputStats | None) -> QTensor:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return gptq(weight, scheme, stats)

    monkeypatch.setitem(ROUNDING_FUNCTIONS, "gptq", interrupting)
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set)
    monkeypatch.undo()

    assert _bytes(quantize(plan, tmp_path / "out", mixed_set).path) == _bytes(whole.path)


def test_bytes_are_equal_on_any_number_of_threads(
    plan: Plan, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and four threads write the same files, with several chunks and tiles; torch keeps its thread count."""
    monkeypatch.setattr(chunked_matmul, "CHUNK_OUTPUTS", 100)
    monkeypatch.setattr(observers, "TILE_COLUMNS", 60)
    made = []
    for threads in (1, 4):
        with torch_threads(threads):
            made.append(quantize(plan, tmp_path / str(threads), mixed_set))
            assert torch.get_num_threads() == threads

    assert _bytes(made[0].path) == _bytes(made[1].path)


def test_spilled_hidden_states_change_no_byte(
    plan: Plan, mixed_set: SampleSet, whole: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples with and without images; their pixels as the model's input are spilled too, and all small tensors."""
    monkeypatch.setattr(spilling, "MIN_NBYTES", 1)
    monkeypatch.setattr(forward, "must_spill", lambda *_: True)

    assert _bytes(quantize(plan, tmp_path / "out", mixed_set).path) == _bytes(whole.path)


def test_a_finished_run_is_reused(
    plan: Plan, mixed_set: SampleSet, whole: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run builds no model, although the manifest now contains calibration results."""
    monkeypatch.setattr(forward, "build_model", None)

    assert quantize(plan, whole.path, mixed_set) == whole


# --- method selection -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small checkpoint with channels of very different magnitudes, as in trained models."""
    return Checkpoint.open(make_uneven(build_checkpoint(tmp_path_factory.mktemp("uneven") / "small", SMALL_CONFIG)))


@pytest.fixture(scope="module")
def selecting(uneven: Checkpoint) -> Plan:
    """A plan with all methods and AWQ as candidates, some weights with large groups."""
    weights = {"*": "int8-row", "language.*": "int4-g64", "head": "int4-row"}
    return make_plan(uneven, recipe(smooth="awq", method="auto", weights=weights, token_weights=WEIGHTS))


@pytest.fixture(scope="module")
def selected(selecting: Plan, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The result of an uninterrupted run with method selection."""
    return quantize(selecting, tmp_path_factory.mktemp("selected") / "whole", mixed_set)


def test_every_block_gets_the_candidate_with_the_least_error(selecting: Plan, selected: QuantizedModel) -> None:
    """Blocks with a smoothing mapping have four candidates, others two; the manifest has all errors and the method."""
    errors = selected.artifact.manifest.held_out_errors
    assert errors is not None
    with_matrices = {block for block in selecting.blocks if block not in ("vision", "embedding", "language")}
    assert errors.keys() == with_matrices
    for block, candidates in errors.items():
        assert list(candidates)[:2] == ["rtn-imatrix", "gptq"]
        best = min(candidates, key=candidates.__getitem__)
        for tensor in selecting.blocks[block]:
            record = selected.records[tensor.name]
            assert (record.method is None) == (tensor.spec.role != "matrix")
            assert record.method in (None, best.removeprefix("awq+"))
            assert record.smoothing_exponent is None or best.startswith("awq+")
    assert len(errors["head"]) == 2
    assert {len(candidates) for block, candidates in errors.items() if block.startswith("language")} == {4}
    assert any(record.smoothing_exponent for name, record in selected.records.items() if name.startswith("language"))


@pytest.mark.parametrize(
    ("block", "module"), [("vision.layers.1", "vpm.encoder.layers.1"), ("language.layers.1", "llm.model.layers.1")]
)
def test_held_out_errors_are_those_of_plain_forward_passes(
    uneven: Checkpoint, mixed_set: SampleSet, selected: QuantizedModel, block: str, module: str
) -> None:
    """The error of a block is that of the held-out samples, with all earlier blocks quantized, by brute force."""
    processor = MiniCpmVProcessor.open(uneven.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in mixed_set]
    held_out = [samples[4], samples[8]]  # the fifth with an image, the last without
    later = list(dict.fromkeys(_block(spec.name) for spec in uneven.specs))
    later = later[later.index(block) :]
    error = total = 0.0
    for sample in held_out if block.startswith("language") else held_out[:1]:
        before, after = (
            _output(_model(uneven, selected, set(original)), module, _tensors(processor, sample))
            for original in (later, later[1:])
        )
        weights = (
            torch.tensor([WEIGHTS[modality] for modality in _modalities(sample)]) if block.startswith("language") else 1
        )
        error += float((weights * (after - before).square().sum(-1)).sum())
        total += float((weights * before.square().sum(-1)).sum())
    errors = selected.artifact.manifest.held_out_errors
    assert errors is not None
    assert min(errors[block].values()) == pytest.approx(error / total, rel=2e-3)


def _output(model: nn.Module, module: str, arguments: Mapping[str, Tensor]) -> Tensor:
    outputs: list[Tensor] = []
    model.get_submodule(module).register_forward_hook(
        lambda _, __, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(**arguments, use_cache=False)
    return outputs[0].flatten(0, -2)


def test_held_out_samples_are_missing_from_the_statistics(selected: QuantizedModel, whole: QuantizedModel) -> None:
    """With method selection, every modality of the set has fewer calibration tokens."""
    fewer, more = (one.records["language.layers.0.mlp.up"].calibration_tokens for one in (selected, whole))
    assert fewer is not None
    assert more is not None
    assert all(0 < fewer[modality] < more[modality] for modality in ("vision", "text", "answer"))


@pytest.mark.parametrize("blocks", [1, 8])
def test_a_selection_interrupted_between_blocks_ends_with_the_same_bytes(
    selecting: Plan, mixed_set: SampleSet, selected: QuantizedModel, tmp_path: Path, blocks: int
) -> None:
    """The errors of finished blocks are read from their files."""
    with pytest.raises(KeyboardInterrupt):
        quantize(selecting, tmp_path / "out", mixed_set, _killed_after(blocks))

    assert _bytes(quantize(selecting, tmp_path / "out", mixed_set).path) == _bytes(selected.path)


@pytest.mark.parametrize("rounded", [3, 50])
def test_a_selection_interrupted_inside_a_block_is_repeated(
    selecting: Plan,
    mixed_set: SampleSet,
    selected: QuantizedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounded: int,
) -> None:
    """Candidates before the interruption have no effect, and four threads give the same bytes as one."""
    remaining, gptq = iter(range(rounded)), ROUNDING_FUNCTIONS["gptq"]

    def interrupting(weight: Tensor, scheme: Any, stats: InputStats | None) -> QTensor:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return gptq(weight, scheme, stats)

    monkeypatch.setitem(ROUNDING_FUNCTIONS, "gptq", interrupting)
    with pytest.raises(KeyboardInterrupt):
        quantize(selecting, tmp_path / "out", mixed_set)
    monkeypatch.undo()

    with torch_threads(4):
        assert _bytes(quantize(selecting, tmp_path / "out", mixed_set).path) == _bytes(selected.path)


def test_a_finished_selection_is_reused(
    selecting: Plan, mixed_set: SampleSet, selected: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run builds no model, although the manifest now contains the selected methods."""
    monkeypatch.setattr(forward, "build_model", None)

    assert quantize(selecting, selected.path, mixed_set) == selected


def test_smoothing_with_rtn_calibrates_only_smoothed_weights(
    uneven: Checkpoint, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """With AWQ and rtn, weights without a smoothing mapping are not calibrated and have the codes of plain rtn."""
    plain = recipe(method="rtn")
    smooth = recipe(method="rtn", smooth="awq")

    without = quantize(make_plan(uneven, plain), tmp_path / "without")
    found = quantize(make_plan(uneven, smooth), tmp_path / "found", mixed_set)

    errors = found.artifact.manifest.held_out_errors
    assert errors is not None
    assert {tuple(candidates) for candidates in errors.values()} == {("rtn", "awq+rtn")}
    assert found.records["head"].calibration_tokens is None
    for name in ("head", "embedding", "projector.kv"):
        one, other = found.load(name), without.load(name)
        assert isinstance(one, IntegerTensor)
        assert isinstance(other, IntegerTensor)
        assert torch.equal(one.codes, other.codes)


def test_smoothquant_is_selected_with_8_bit_inputs(uneven: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """SmoothQuant halves the error of a vision layer with uneven channels, which needs rounded inputs in the loss.

    It is kept in the blocks where it has the smaller error.
    """
    plan = make_plan(uneven, recipe(method="rtn", smooth="smoothquant", weights={"vision.*": "int8-row"}))

    found = quantize(plan, tmp_path / "out", mixed_set)

    errors = found.artifact.manifest.held_out_errors
    assert errors is not None
    assert errors.keys() == {"vision.layers.0", "vision.layers.1"}
    assert any(error["smoothquant+rtn"] < 0.5 * error["rtn"] for error in errors.values())
    for block, error in errors.items():
        helps = error["smoothquant+rtn"] < error["rtn"]
        assert any(found.records[tensor.name].smoothing_exponent for tensor in plan.blocks[block]) == helps


def test_a_single_sample_of_a_modality_is_an_error(selecting: Plan, mixed_set: SampleSet, tmp_path: Path) -> None:
    """Method selection holds samples out; the error comes before any work."""
    alone = _only(mixed_set, lambda sample: sample.image is not None or sample.id == "t1")

    with pytest.raises(DatasetError, match="only one text-only sample; at least two are needed because one is held"):
        quantize(selecting, tmp_path / "out", alone)

    assert not list(tmp_path.iterdir())


# --- manifest ---------------------------------------------------------------------------------------------------------


def test_the_manifest_records_the_calibration(whole: QuantizedModel, mixed_set: SampleSet) -> None:
    """It has the calibration set and, for calibrated matrices only, the tokens of each modality."""
    manifest = whole.artifact.manifest
    assert manifest.calibration_set is not None
    assert manifest.calibration_set.model_dump() == {
        "name": mixed_set.path.name,
        "sha256": mixed_set.sha256,
        "samples": 9,
        "with_image": 6,
        "fingerprints": mixed_set.fingerprints,
    }
    matrices = {name for name, spec in whole.specs.items() if spec.role == "matrix"}
    assert {record.name for record in manifest.weights if record.calibration_tokens} == matrices
    gate, head = (whole.records[name].calibration_tokens for name in ("language.layers.1.mlp.gate", "head"))
    assert gate is not None
    assert head == {**gate, "vision": 0}
    assert [name for name, count in gate.items() if not count] == ["audio"]


def test_rtn_needs_no_calibration(
    checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rtn no model is built, and codes and manifest fields are equal with and without a calibration set."""
    monkeypatch.setattr(forward, "build_model", None)
    plan = make_plan(checkpoint, Recipe.load("phone-int4"))

    ignored, without = quantize(plan, tmp_path / "ignored", mixed_set), quantize(plan, tmp_path / "without")

    manifest = json.loads((ignored.path / MANIFEST).read_text())
    assert "calibration_set" not in manifest
    assert not any("calibration_tokens" in weight for weight in manifest["weights"])
    assert manifest["recipe"].keys() == {"name", "smooth", "method", "weights"}
    assert {name: value for name, value in _bytes(ignored.path).items() if name != MANIFEST} == {
        name: value for name, value in _bytes(without.path).items() if name != MANIFEST
    }
    assert Manifest.model_validate(manifest) == ignored.artifact.manifest


def test_the_calibrated_recipe_has_the_schemes_of_the_rtn_recipe() -> None:
    """It differs in the method only, so that a comparison of the two measures the method."""
    calibrated, plain = Recipe.load("calibrated-int4"), Recipe.load("phone-int4")

    assert (calibrated.weights, calibrated.method, plain.method) == (plain.weights, "gptq", "rtn")


# --- errors -----------------------------------------------------------------------------------------------------------


def _only(samples: SampleSet, keep: Callable[[Any], bool]) -> SampleSet:
    return SampleSet(samples.path, tuple(filter(keep, samples)))


def test_a_missing_calibration_set_is_an_error(plan: Plan, tmp_path: Path) -> None:
    """The error gives the number of weights to calibrate, the hint the option; nothing is written."""
    with pytest.raises(DatasetError, match=r"`calibrated` needs calibration for 31 weights") as caught:
        quantize(plan, tmp_path / "out")

    assert "--calibration" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_quantizing_vision_without_an_image_is_an_error(plan: Plan, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The error names the first vision matrix; nothing is written."""
    with pytest.raises(DatasetError, match=r"`vision\.layers\.0\.attention\.q` receives no token of the 3"):
        quantize(plan, tmp_path / "out", _only(mixed_set, lambda sample: not sample.image))

    assert not list(tmp_path.iterdir())


def test_text_samples_calibrate_a_language_model(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """No image is needed if the recipe keeps the vision weights."""
    kept = recipe(weights={"language.*": "int4-g32", "head": "int8-g32"})

    quantized = quantize(make_plan(checkpoint, kept), tmp_path / "out", _only(mixed_set, lambda one: not one.image))

    tokens = quantized.records["language.layers.0.attention.o"].calibration_tokens
    assert tokens is not None
    assert (tokens["vision"], quantized.records["vision.layers.0.mlp.up"].calibration_tokens) == (0, None)


def test_a_matrix_with_tokens_of_weight_zero_is_an_error(
    checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The head receives no image tokens, so it cannot be calibrated if only these have a weight."""
    images_only = recipe(token_weights={"text": 0, "answer": 0})

    with pytest.raises(DatasetError, match="`head` receives no token of the 9 calibration samples, or only tokens of"):
        quantize(make_plan(checkpoint, images_only), tmp_path / "out", mixed_set)


def _with_value(checkpoint: Checkpoint, path: Path, name: str, value: float) -> Plan:
    copy = Path(shutil.copytree(checkpoint.path, path / "copy"))
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name].view(-1)[5] = value
    save_file(tensors, shard)
    return make_plan(Checkpoint.open(copy), recipe())


def test_values_that_are_not_finite_are_an_error(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The error names a broken weight, or the first matrix that receives overflowing activations."""
    down = "llm.model.layers.1.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=down):
        quantize(_with_value(checkpoint, tmp_path / "a", down, float("nan")), tmp_path / "a" / "out", mixed_set)

    norm = "llm.model.layers.1.input_layernorm.weight"
    with pytest.raises(DatasetError, match=r"the inputs of `language\.layers\.1\.attention\.q` are not finite"):
        quantize(_with_value(checkpoint, tmp_path / "b", norm, 1e38), tmp_path / "b" / "out", mixed_set)


@pytest.fixture(autouse=True)
def _keeps_thread_count() -> Iterator[None]:
    """Every test ends with the thread count it began with."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
