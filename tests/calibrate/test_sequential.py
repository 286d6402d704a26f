"""Rounding by sight: every matrix is rounded by what it really sees, later blocks see the rounded earlier ones, and a
killed run ends with the same bytes."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcpmq.artifact import MANIFEST, Manifest
from mcpmq.calibrate import observers as observing
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError, CheckpointError
from mcpmq.execution import chunked_matmul, torch_model
from mcpmq.execution.chunked_matmul import torch_threads
from mcpmq.families.family import Inputs, TensorSpec
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import position_code
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS
from mcpmq.rounding.stats import LayerStats
from mcpmq.system.progress import Item
from tests.tiny import build_checkpoint, make_uneven

BLOCKS = 11  # of the tiny model: what samples pass, the smallest parts too
WEIGHTS = {"vision": 0.25, "text": 1.0, "answer": 2.0}


def recipe(**more: Any) -> Recipe:
    whole = {"name": "by-sight", "round": "gptq", "weights": {"*": "int8-g32", "language.*": "int4-g32"}}
    return Recipe.model_validate({**whole, **more})


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> Plan:
    """The tiny checkpoint, to be rounded by sight."""
    return make_plan(checkpoint, recipe())


@pytest.fixture(scope="module")
def whole(plan: Plan, mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """What a run that nobody disturbed made of it."""
    return quantize(plan, tmp_path_factory.mktemp("calibrated") / "whole", mixed_set)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _killed_after(blocks: int) -> Any:
    def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
        if what != "calibrating":
            yield from items
            return
        yield from items[:blocks]
        raise KeyboardInterrupt

    return progress


# --- what is seen -----------------------------------------------------------------------------------------------------


def _seen_by_brute_force(model: nn.Module, sample: Inputs, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The input [tokens, columns] of every matrix of the whole model in a plain forward pass, by hub name."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(partial(_keep, seen, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    outputs: dict[str, Tensor] = {}
    for name in ("ln_q", "ln_kv", "ln_post"):
        module = model.resampler.get_submodule(name)  # type: ignore[union-attr, operator]
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output})))
    with torch.no_grad():
        model(**arguments, use_cache=False)
        for handle in handles:
            handle.remove()
        seen = {name: rows.flatten(0, -2) for name, rows in seen.items()}
        return seen | (_seen_by_the_resampler(model.resampler, outputs, arguments) if sample.slices else {})


def _keep(seen: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    seen[name] = args[0]


def _seen_by_the_resampler(
    resampler: Any, outputs: Mapping[str, Tensor], arguments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Attention written out, slice by slice."""
    attention, sizes = resampler.attn, arguments["target_sizes"].tolist()
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    queries, keys, mixed = outputs["ln_q"], [], []
    values = outputs["ln_kv"].split([height * width for height, width in sizes])
    for value, size in zip(values, sizes, strict=True):
        keys.append(value + position_code(*size, value.shape[1], value.device, value.dtype))
        q, k, v = (
            (x @ weight.T + bias).unflatten(1, (attention.num_heads, -1)).transpose(0, 1)
            for x, weight, bias in zip((queries, keys[-1], value), weights, biases, strict=True)
        )
        chances = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed.append((chances @ v).transpose(0, 1).flatten(1))
    return {
        "resampler.attn.in_proj_weight|0": queries.repeat(len(sizes), 1),
        "resampler.attn.in_proj_weight|1": torch.cat(keys),
        "resampler.attn.in_proj_weight|2": torch.cat(list(values)),
        "resampler.attn.out_proj.weight": torch.cat(mixed),
        "resampler.proj": outputs["ln_post"].flatten(0, -2),
    }


def _model(checkpoint: Checkpoint, quantized: Quantized, original: set[str]) -> nn.Module:
    """The plain model with the original weights of these blocks and the quantized ones of all others."""
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)

    def floats(spec: TensorSpec) -> Tensor:
        stored = checkpoint.load(spec) if _block(spec.name) in original else quantized.load(spec.name)
        return torch_model.floats_of(stored, spec)

    for block in model.blocks:
        model.fill(block, floats)
    return model.module


def _block(name: str) -> str:
    return ".".join(name.split(".")[: 3 if ".layers." in name else 1])


def test_every_matrix_is_rounded_by_what_it_sees(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gram matrices and counts are those of brute-force sums over plain forward passes, for every matrix of both
    towers, when all blocks before the matrix's own are quantized already."""
    given: list[LayerStats] = []

    def recording(weight: Tensor, scheme: Any, stats: LayerStats | None) -> QTensor:
        assert stats is not None
        given.append(stats)
        return ROUNDERS["rtn"](weight, scheme, None)

    monkeypatch.setitem(ROUNDERS, "gptq", recording)
    quantized = quantize(make_plan(checkpoint, recipe(modalities=WEIGHTS)), tmp_path / "out", mixed_set)

    processor = MiniCpmVProcessor.open(checkpoint.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in mixed_set]
    matrices = [spec for spec in checkpoint.specs if spec.role == "matrix"]
    order, left = list(dict.fromkeys(_block(spec.name) for spec in matrices)), iter(given)
    for number, block in enumerate(order):
        model = _model(checkpoint, quantized, set(order[number:]))
        seen = [_seen_by_brute_force(model, one, _tensors(processor, one)) for one in samples]
        for spec in (spec for spec in matrices if _block(spec.name) == block):
            for key in (f"{spec.hub_name}|{part}" for part in range(3)) if "qkv" in spec.name else (spec.hub_name,):
                pairs = zip(seen, samples, strict=True)
                _compare(next(left), spec, [(one[key], sample) for one, sample in pairs if key in one])
    assert next(left, None) is None


def _tensors(processor: MiniCpmVProcessor, sample: Inputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in processor.arguments(sample).items()}


def _compare(stats: LayerStats, spec: TensorSpec, seen: list[tuple[Tensor, Inputs]]) -> None:
    gram, tokens = torch.zeros_like(stats.gram, dtype=torch.float64), dict.fromkeys(WEIGHTS, 0)
    for rows, sample in seen:
        kinds = _kinds(sample) if spec.component in ("language", "head") else ["vision"] * len(rows)
        for row, kind in zip(rows.double(), kinds, strict=True):
            if spec.component == "head" and kind == "vision":
                continue
            tokens[kind] += 1
            gram += (WEIGHTS[kind] if spec.component in ("language", "head") else 1) * torch.outer(row, row)
    assert stats.tokens == tokens, spec.name
    assert sum(tokens.values()) > 0
    assert float((stats.gram - gram).abs().max()) < 1e-4 * float(gram.abs().max()), spec.name


def _kinds(sample: Inputs) -> list[str]:
    """By going through the tokens."""
    inside = {place for begin, end in sample.image_bounds.tolist() for place in range(begin, end)}
    return [
        "vision" if place in inside else "answer" if place >= sample.answer_start else "text"
        for place in range(len(sample.tokens))
    ]


# --- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", range(BLOCKS))
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(
    plan: Plan, mixed_set: CalibrationSet, whole: Quantized, tmp_path: Path, blocks: int
) -> None:
    """Killed before any block: the blocks that have their file are not rounded again, and the end is the same."""
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set, _killed_after(blocks))
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / ".out.partial" / "blocks").iterdir()}

    resumed = quantize(plan, tmp_path / "out", mixed_set)

    assert _bytes(resumed.path) == _bytes(whole.path)
    after = {file: (resumed.path / "blocks" / file.name).stat().st_mtime_ns for file in finished}
    assert after == finished


def test_a_run_killed_before_its_manifest_needs_no_model(
    plan: Plan, mixed_set: CalibrationSet, whole: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks are there: no sample passes again."""
    partial_folder = Path(shutil.copytree(whole.path, tmp_path / ".out.partial"))
    (partial_folder / MANIFEST).unlink()
    monkeypatch.setattr(torch_model, "build", None)

    assert _bytes(quantize(plan, tmp_path / "out", mixed_set).path) == _bytes(whole.path)


def test_all_blocks_of_the_model_were_among_them(checkpoint: Checkpoint) -> None:
    """The number above is that of the tiny model."""
    assert len(torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs).blocks) == BLOCKS


@pytest.mark.parametrize("rounded", [1, 9, 20])
def test_a_run_killed_inside_of_a_block_rounds_it_anew(
    plan: Plan,
    mixed_set: CalibrationSet,
    whole: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounded: int,
) -> None:
    """Half a block is no block."""
    left, gptq = iter(range(rounded)), ROUNDERS["gptq"]

    def killing(weight: Tensor, scheme: Any, stats: LayerStats | None) -> QTensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return gptq(weight, scheme, stats)

    monkeypatch.setitem(ROUNDERS, "gptq", killing)
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set)
    monkeypatch.undo()

    assert _bytes(quantize(plan, tmp_path / "out", mixed_set).path) == _bytes(whole.path)


def test_threads_change_no_byte(
    plan: Plan, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and however many pieces of work; there are as many afterwards."""
    monkeypatch.setattr(chunked_matmul, "PIECE_OUTPUTS", 100)
    monkeypatch.setattr(observing, "TILE_COLUMNS", 60)
    made = []
    for threads in (1, 4):
        with torch_threads(threads):
            made.append(quantize(plan, tmp_path / str(threads), mixed_set))
            assert torch.get_num_threads() == threads

    assert _bytes(made[0].path) == _bytes(made[1].path)


def test_a_finished_run_is_returned(
    plan: Plan, mixed_set: CalibrationSet, whole: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again does no work, although the manifest has learnt since what was seen."""
    monkeypatch.setattr(torch_model, "build", None)

    assert quantize(plan, whole.path, mixed_set) == whole


# --- where there is a choice ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint whose channels differ as those of real models do."""
    return Checkpoint.open(make_uneven(build_checkpoint(tmp_path_factory.mktemp("uneven") / "tiny")))


@pytest.fixture(scope="module")
def choosing(uneven: Checkpoint) -> Plan:
    """To be rounded in every way there is, some weights on wide groups."""
    weights = {"*": "int8-row", "language.*": "int4-g64", "head": "int4-row"}
    return make_plan(uneven, recipe(smooth="awq", round="best", weights=weights, modalities=WEIGHTS))


@pytest.fixture(scope="module")
def chosen(choosing: Plan, mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """What a run that nobody disturbed chose."""
    return quantize(choosing, tmp_path_factory.mktemp("chosen") / "whole", mixed_set)


def test_every_block_is_judged_and_the_best_way_kept(choosing: Plan, chosen: Quantized) -> None:
    """Four ways where scales can move and two where not; the manifest has all errors and says which was taken."""
    errors = chosen.artifact.manifest.held_out_errors
    assert errors is not None
    judged = {block for block in choosing.blocks if block not in ("vision", "embedding", "language")}
    assert errors.keys() == judged
    for block, tried in errors.items():
        assert list(tried)[:2] == ["importance", "gptq"]
        best = min(tried, key=tried.__getitem__)
        for step in choosing.blocks[block]:
            record = chosen.records[step.name]
            assert (record.round is None) == (step.spec.role != "matrix")
            assert record.round in (None, best.removeprefix("awq+"))
            assert record.smooth is None or best.startswith("awq+")
    assert len(errors["head"]) == 2
    assert {len(tried) for block, tried in errors.items() if block.startswith("language")} == {4}
    assert any(record.smooth for name, record in chosen.records.items() if name.startswith("language"))


@pytest.mark.parametrize(
    ("block", "module"), [("vision.layers.1", "vpm.encoder.layers.1"), ("language.layers.1", "llm.model.layers.1")]
)
def test_the_errors_are_those_of_plain_forward_passes(
    uneven: Checkpoint, mixed_set: CalibrationSet, chosen: Quantized, block: str, module: str
) -> None:
    """Of samples that no statistics have seen, with the blocks before it quantized already, by brute force."""
    processor = MiniCpmVProcessor.open(uneven.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in mixed_set]
    judges = [samples[4], samples[8]]  # the fifth with an image, the last without
    later = list(dict.fromkeys(_block(spec.name) for spec in uneven.specs))
    later = later[later.index(block) :]
    error = whole = 0.0
    for sample in judges if block.startswith("language") else judges[:1]:
        before, after = (
            _output(_model(uneven, chosen, set(original)), module, _tensors(processor, sample))
            for original in (later, later[1:])
        )
        weights = torch.tensor([WEIGHTS[kind] for kind in _kinds(sample)]) if block.startswith("language") else 1
        error += float((weights * (after - before).square().sum(-1)).sum())
        whole += float((weights * before.square().sum(-1)).sum())
    errors = chosen.artifact.manifest.held_out_errors
    assert errors is not None
    assert min(errors[block].values()) == pytest.approx(error / whole, rel=2e-3)


def _output(model: nn.Module, module: str, arguments: Mapping[str, Tensor]) -> Tensor:
    heard: list[Tensor] = []
    model.get_submodule(module).register_forward_hook(
        lambda _, __, output: heard.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(**arguments, use_cache=False)
    return heard[0].flatten(0, -2)


def test_samples_that_judge_decide_nothing_else(chosen: Quantized, whole: Quantized) -> None:
    """One image and one text of nine samples are missing from what was seen."""
    few, all_of_them = (one.records["language.layers.0.mlp.up"].tokens for one in (chosen, whole))
    assert few is not None
    assert all_of_them is not None
    assert all(0 < few[kind] < all_of_them[kind] for kind in few)


@pytest.mark.parametrize("blocks", [1, 8])
def test_a_choice_killed_between_blocks_ends_with_the_same_bytes(
    choosing: Plan, mixed_set: CalibrationSet, chosen: Quantized, tmp_path: Path, blocks: int
) -> None:
    """The errors of finished blocks are in their files."""
    with pytest.raises(KeyboardInterrupt):
        quantize(choosing, tmp_path / "out", mixed_set, _killed_after(blocks))

    assert _bytes(quantize(choosing, tmp_path / "out", mixed_set).path) == _bytes(chosen.path)


@pytest.mark.parametrize("rounded", [3, 50])
def test_a_choice_killed_inside_of_a_block_is_made_anew(
    choosing: Plan,
    mixed_set: CalibrationSet,
    chosen: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounded: int,
) -> None:
    """Ways that were tried already leave nothing behind. Then it runs on four threads, and no byte is another."""
    left, gptq = iter(range(rounded)), ROUNDERS["gptq"]

    def killing(weight: Tensor, scheme: Any, stats: LayerStats | None) -> QTensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return gptq(weight, scheme, stats)

    monkeypatch.setitem(ROUNDERS, "gptq", killing)
    with pytest.raises(KeyboardInterrupt):
        quantize(choosing, tmp_path / "out", mixed_set)
    monkeypatch.undo()

    with torch_threads(4):
        assert _bytes(quantize(choosing, tmp_path / "out", mixed_set).path) == _bytes(chosen.path)


def test_a_finished_choice_is_returned(
    choosing: Plan, mixed_set: CalibrationSet, chosen: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again does no work, although the manifest has learnt since what was chosen."""
    monkeypatch.setattr(torch_model, "build", None)

    assert quantize(choosing, chosen.path, mixed_set) == chosen


def test_smoothing_alone_looks_only_where_scales_move(
    uneven: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """Rounded to nearest after AWQ: what takes no scales needs no samples, and its codes are those without."""
    plain = recipe(round="rtn")
    smooth = recipe(round="rtn", smooth="awq")

    without = quantize(make_plan(uneven, plain), tmp_path / "without")
    found = quantize(make_plan(uneven, smooth), tmp_path / "found", mixed_set)

    errors = found.artifact.manifest.held_out_errors
    assert errors is not None
    assert {tuple(tried) for tried in errors.values()} == {("rtn", "awq+rtn")}
    assert found.records["head"].tokens is None
    for name in ("head", "embedding", "projector.kv"):
        one, other = found.load(name), without.load(name)
        assert isinstance(one, QTensor)
        assert isinstance(other, QTensor)
        assert torch.equal(one.codes, other.codes)


def test_smoothing_for_8_bit_inputs_is_judged_with_them(
    uneven: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """One step for all inputs, and channels of very different size: SmoothQuant more than halves the error of a vision
    layer, which it could not if inputs were not rounded, and is taken where it helps."""
    plan = make_plan(uneven, recipe(round="rtn", smooth="smoothquant", weights={"vision.*": "int8-row"}))

    found = quantize(plan, tmp_path / "out", mixed_set)

    errors = found.artifact.manifest.held_out_errors
    assert errors is not None
    assert errors.keys() == {"vision.layers.0", "vision.layers.1"}
    assert any(tried["smoothquant+rtn"] < 0.5 * tried["rtn"] for tried in errors.values())
    for block, tried in errors.items():
        helps = tried["smoothquant+rtn"] < tried["rtn"]
        assert any(found.records[step.name].smooth for step in plan.blocks[block]) == helps


def test_one_sample_of_a_kind_cannot_both_decide_and_judge(
    choosing: Plan, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """It is refused before any work."""
    alone = _only(mixed_set, lambda sample: sample.image is not None or sample.id == "t1")

    with pytest.raises(CalibrationError, match="one sample without an image, which cannot both decide and judge"):
        quantize(choosing, tmp_path / "out", alone)

    assert not list(tmp_path.iterdir())


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_calibrated_on_what(whole: Quantized, mixed_set: CalibrationSet) -> None:
    """The set, and the tokens of each kind that every matrix saw; nothing about weights that saw none."""
    manifest = whole.artifact.manifest
    assert manifest.calibrated_on is not None
    assert manifest.calibrated_on.model_dump() == {
        "name": mixed_set.path.name,
        "sha256": mixed_set.sha256,
        "samples": 9,
        "with_image": 6,
        "fingerprints": mixed_set.fingerprints,
    }
    matrices = {name for name, spec in whole.specs.items() if spec.role == "matrix"}
    assert {record.name for record in manifest.weights if record.tokens} == matrices
    gate, head = (whole.records[name].tokens for name in ("language.layers.1.mlp.gate", "head"))
    assert gate is not None
    assert head == {**gate, "vision": 0}
    assert all(gate.values())


def test_rounding_to_nearest_looks_at_nothing(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is built, the set changes no code, and the manifest says nothing that it did not say before."""
    monkeypatch.setattr(torch_model, "build", None)
    plan = make_plan(checkpoint, Recipe.load("phone-int4"))

    given, without = quantize(plan, tmp_path / "given", mixed_set), quantize(plan, tmp_path / "without")

    manifest = json.loads((given.path / MANIFEST).read_text())
    assert "calibrated_on" not in manifest
    assert not any("tokens" in weight for weight in manifest["weights"])
    assert manifest["recipe"].keys() == {"name", "smooth", "round", "weights"}
    assert {name: value for name, value in _bytes(given.path).items() if name != MANIFEST} == {
        name: value for name, value in _bytes(without.path).items() if name != MANIFEST
    }
    assert Manifest.model_validate(manifest) == given.artifact.manifest


@pytest.mark.parametrize("name", ["calibrated-int4", "calibrated-quality-int4"])
def test_recipes_by_sight_have_the_grids_of_their_models(name: str) -> None:
    """Same bytes, other integers."""
    sighted, blind = (
        Recipe.load(name),
        Recipe.load(name.replace("calibrated-int4", "phone-int4").removeprefix("calibrated-")),
    )

    assert (sighted.weights, sighted.round, blind.round) == (blind.weights, "gptq", "rtn")


# --- what is refused --------------------------------------------------------------------------------------------------


def _only(samples: CalibrationSet, keep: Callable[[Any], bool]) -> CalibrationSet:
    return CalibrationSet(samples.path, tuple(filter(keep, samples)))


def test_without_a_calibration_set_nothing_begins(plan: Plan, tmp_path: Path) -> None:
    """A recipe that looks needs something to look at; the hint says how to name it."""
    with pytest.raises(CalibrationError, match=r"`by-sight` rounds 31 weights by what they see") as caught:
        quantize(plan, tmp_path / "out")

    assert "--calibration" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_without_an_image_a_vision_tower_cannot_be_rounded(
    plan: Plan, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """It is refused before any work, and names the first matrix."""
    with pytest.raises(CalibrationError, match=r"`vision\.layers\.0\.attention\.q` saw no token of the 3"):
        quantize(plan, tmp_path / "out", _only(mixed_set, lambda sample: not sample.image))

    assert not list(tmp_path.iterdir())


def test_text_alone_rounds_a_language_model(checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path) -> None:
    """Where vision keeps its dtype, no image is needed."""
    kept = recipe(weights={"language.*": "int4-g32", "head": "int8-g32"})

    quantized = quantize(make_plan(checkpoint, kept), tmp_path / "out", _only(mixed_set, lambda one: not one.image))

    tokens = quantized.records["language.layers.0.attention.o"].tokens
    assert tokens is not None
    assert (tokens["vision"], quantized.records["vision.layers.0.mlp.up"].tokens) == (0, None)


def test_a_matrix_whose_tokens_weigh_nothing_is_named(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """The head sees no image, so images alone are nothing to round it by."""
    images = recipe(modalities={"text": 0, "answer": 0})

    with pytest.raises(CalibrationError, match="`head` saw no token of the 9 calibration samples"):
        quantize(make_plan(checkpoint, images), tmp_path / "out", mixed_set)


def _damaged(checkpoint: Checkpoint, path: Path, name: str, value: float) -> Plan:
    copy = Path(shutil.copytree(checkpoint.path, path / "copy"))
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name].view(-1)[5] = value
    save_file(tensors, shard)
    return make_plan(Checkpoint.open(copy), recipe())


def test_what_is_not_finite_is_named(checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path) -> None:
    """A weight by its own name, and activations that overflow by the first matrix that sees them."""
    down = "llm.model.layers.1.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=down):
        quantize(_damaged(checkpoint, tmp_path / "a", down, float("nan")), tmp_path / "a" / "out", mixed_set)

    norm = "llm.model.layers.1.input_layernorm.weight"
    with pytest.raises(CalibrationError, match=r"`language\.layers\.1\.attention\.q` saw values that are not finite"):
        quantize(_damaged(checkpoint, tmp_path / "b", norm, 1e38), tmp_path / "b" / "out", mixed_set)


@pytest.fixture(autouse=True)
def _leaves_no_hooks() -> Iterator[None]:
    """The number of threads is as it was, whatever failed."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
