"""A layerwise run gives the results of separate forward passes with the weights of one block in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcpmq.execution.layerwise import Replay, ReplayStopped, find_blocks, run_layerwise
from mcpmq.families.modeling_minicpmv import build


def chain(depth: int = 3) -> nn.Sequential:
    """Layers in a row."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(depth)])


class Optional(nn.Module):
    """A model with a first part that some samples skip, and a second part for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = chain(2), chain(2)

    def forward(self, x: Tensor, image: bool) -> Tensor:
        result: Tensor = self.last(self.first(x) if image else x)
        return result

    def blocks(self) -> list[nn.Module]:
        return [*self.first, *self.last]


def inputs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"input": torch.randn(number + 1, 4), **more} for number in range(count)]


@torch.inference_mode()
def test_outputs_equal_those_of_separate_runs(tiny_checkpoint: Path) -> None:
    """Samples of different lengths, with and without images, have exactly the logits of a plain forward pass."""
    model = build(json.loads((tiny_checkpoint / "config.json").read_text())).to_empty(device="cpu")
    rotary = model.llm.model.rotary_emb
    model.llm.model.rotary_emb = type(rotary)(rotary.config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    generator = np.random.default_rng(0)

    def sample(length: int, *sizes: tuple[int, int]) -> dict[str, Any]:
        tokens = {"input_ids": torch.from_numpy(generator.integers(0, 300, (1, length))), "use_cache": False}
        if not sizes:
            return tokens
        patches = sum(height * width for height, width in sizes)
        return tokens | {
            "pixel_values": torch.randn(1, 3, 14, 14 * patches),
            "target_sizes": torch.tensor(sizes),
            "image_bound": torch.tensor([[1 + 5 * index, 5 + 5 * index] for index in range(len(sizes))]),
        }

    samples = [sample(9, (4, 4)), sample(12), sample(20, (3, 4), (4, 2), (2, 2)), sample(3), sample(16, (1, 7))]
    alone = [model(**one).logits for one in samples]
    blocks = [*model.vpm.encoder.layers, *model.llm.model.layers]
    together = run_layerwise(model, blocks, samples)
    assert [float((one.logits - other).abs().max()) for one, other in zip(together, alone, strict=True)] == [0.0] * 5


def test_blocks_are_loaded_once_and_one_at_a_time() -> None:
    """Blocks are loaded and released in the order of the forward pass, also if some samples skip the first ones."""
    model = Optional()
    log: list[tuple[str, int]] = []
    blocks = model.blocks()
    samples = [{"x": torch.randn(2, 4), "image": number % 2 == 0} for number in range(5)]
    run_layerwise(
        model,
        blocks,
        samples,
        load=lambda block: log.append(("load", blocks.index(block))),
        release=lambda block: log.append(("release", blocks.index(block))),
    )
    assert log == [(event, number) for number in range(4) for event in ("load", "release")]


def test_weights_are_needed_only_while_their_block_is_loaded() -> None:
    """Outputs are the same with all weights empty outside of load and release."""
    model, samples = chain(), inputs(4)
    expected = [model(**one) for one in samples]
    stored = {block: {name: value.clone() for name, value in block.state_dict().items()} for block in model}
    resident: list[int] = []

    def load(block: nn.Module) -> None:
        for name, parameter in block.named_parameters():
            parameter.data = stored[block][name]
        resident.append(sum(parameter.numel() > 0 for parameter in model.parameters()))

    def release(block: nn.Module) -> None:
        for parameter in block.parameters():
            parameter.data = torch.empty(0)

    for block in model:
        release(block)
    results = run_layerwise(model, list(model), samples, load=load, release=release)
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))
    assert set(resident) == {2}  # the weight and the bias of one linear


def test_replays_repeat_the_inputs_of_a_block_and_keep_the_results() -> None:
    """Hooks of a visitor run for all samples in every replay, and the results of the run stay the same."""
    model, samples = chain(), inputs(3)
    expected = [model(**one) for one in samples]
    lengths: list[int] = []

    def visit(block: nn.Module, replay: Callable[[], None]) -> None:
        linear = next(module for module in block.modules() if isinstance(module, nn.Linear))
        with linear.register_forward_hook(lambda _, args, __: lengths.append(len(args[0]))):
            replay()
            replay()

    results = run_layerwise(model, list(model), samples, visit=visit)
    assert lengths == [1, 2, 3] * 6
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_a_replay_may_be_limited_to_some_samples() -> None:
    """Samples are selected by index, also at a block that others skip."""
    model, lengths = Optional(), list[int]()
    samples = [{"x": torch.randn(number + 1, 4), "image": number != 0} for number in range(4)]

    def visit(block: nn.Module, replay: Replay) -> None:
        with block.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0]))):
            replay(only={0, 2})

    run_layerwise(model, model.blocks(), samples, visit=visit)
    assert lengths == [3] * 2 + [1, 3] * 2


def test_some_samples_may_pass_before_the_others() -> None:
    """They get the weights of that moment, do not wait any longer, and the others get the later weights."""
    model, samples = chain(), inputs(4)
    expected = [model(**one) for one in samples]

    def visit(block: nn.Module, replay: Replay) -> None:
        assert replay.waiting() == [0, 1, 2, 3]
        replay.advance({1, 3})
        assert replay.waiting() == [0, 2]
        for parameter in block.parameters():
            parameter.data.zero_()
        lengths: list[int] = []
        with block.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0]))):
            replay()
        assert lengths == [1, 3]

    results = run_layerwise(model, list(model), samples, visit=visit)
    assert all(torch.equal(results[index], expected[index]) for index in (1, 3))
    assert not any(results[index].any() for index in (0, 2))


def test_samples_pass_with_the_hooks_of_the_visit() -> None:
    """A hook on the block gets the output that the sample goes on with; the others wait."""
    model, samples = chain(), inputs(3)
    expected, outputs = [model(**one) for one in samples], list[torch.Tensor]()

    def visit(block: nn.Module, replay: Replay) -> None:
        with block.register_forward_hook(lambda *args: outputs.append(args[2])):
            replay.advance_with_hooks({0, 2})
        assert replay.waiting() == [1]
        for parameter in block.parameters():
            parameter.data.zero_()

    results = run_layerwise(model, list(model), samples, visit=visit)
    assert len(outputs) == 2 * len(model)
    assert results[0] is outputs[-2]
    assert results[2] is outputs[-1]
    assert all(torch.equal(results[index], expected[index]) for index in (0, 2))
    assert not results[1].any()


def test_a_replay_may_end_inside_the_block() -> None:
    """A hook that stops it has no effect on the pass of the sample."""
    model, samples, seen = chain(), inputs(2), list[str]()
    expected = [model(**one) for one in samples]

    def stop(*_: object) -> None:
        seen.append("stopped")
        raise ReplayStopped

    def visit(block: nn.Module, replay: Replay) -> None:
        last = block.get_submodule("1")
        with (
            block.get_submodule("0").register_forward_hook(stop),
            last.register_forward_hook(lambda *_: seen.append("x")),
        ):
            replay()

    results = run_layerwise(model, list(model), samples, visit=visit)
    assert seen == ["stopped"] * 6
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_hooks_on_a_block_itself_run_in_a_replay() -> None:
    """A block that is a single nn.Linear can be observed like one inside a block."""
    torch.manual_seed(0)
    model, samples = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), inputs(3)
    expected = [model(**one) for one in samples]
    lengths: list[int] = []

    def visit(block: nn.Module, replay: Callable[[], None]) -> None:
        with block.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0]))):
            replay()
        replay()

    results = run_layerwise(model, list(model), samples, visit=visit)
    assert lengths == [1, 2, 3] * 2
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_samples_pass_through_the_weights_that_a_visitor_sets() -> None:
    """A visitor that sets all weights to zero gives the output of the zero model."""

    def zero(block: nn.Module, replay: Callable[[], None]) -> None:
        for parameter in block.parameters():
            parameter.data.zero_()

    model, samples = chain(), inputs(2)
    results = run_layerwise(model, list(model), samples, visit=zero)
    assert all(torch.equal(result, torch.zeros_like(result)) for result in results)


def test_an_error_releases_the_block_and_restores_the_model() -> None:
    """An error inside a block reaches the caller, and the model runs afterwards."""
    model, samples = chain(), [*inputs(2), {"input": torch.randn(1, 5)}]
    released: list[nn.Module] = []
    with pytest.raises(RuntimeError, match="shapes"):
        run_layerwise(model, list(model), samples, release=released.append)
    assert released == [model[0]]
    assert all("forward" not in vars(block) for block in model)
    assert model(samples[0]["input"]).shape == (1, 4)


def test_blocks_are_layers_and_modules_with_parameters_outside_of_layers(tiny_checkpoint: Path) -> None:
    """Every parameter of the tiny model is in exactly one block, and blocks have the order of the names."""
    model = build(json.loads((tiny_checkpoint / "config.json").read_text()))
    names = [name for name, _ in model.named_parameters()]
    blocks = find_blocks(model, names)
    assert sum(len(list(block.parameters())) for block in blocks) == len(names)
    assert {model.resampler, model.llm.lm_head, *model.llm.model.layers, *model.vpm.encoder.layers} < set(blocks)
    assert find_blocks(model, names[::-1]) == blocks[::-1]


def test_no_samples_give_no_results() -> None:
    """Nothing is loaded for an empty list."""
    assert run_layerwise(chain(), [], []) == []


class Routed(nn.Module):
    """A block with two inner blocks, of which a sample uses one or both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts = nn.Linear(4, 4), chain(2)

    def forward(self, x: Tensor, used: tuple[int, ...]) -> Tensor:
        hidden: Tensor = self.first(x)
        outputs: list[Tensor] = [self.experts[index](hidden) for index in used]
        return torch.stack([hidden, *outputs]).sum(0)


@torch.inference_mode()
def test_samples_pass_inner_blocks_one_at_a_time() -> None:
    """Outputs equal those of separate runs; in a replay of the outer block, inner blocks add nothing."""
    outer = Routed()
    samples = [{"x": torch.randn(3, 4), "used": used} for used in ((0,), (1,), (0, 1))]
    expected = [outer(**sample) for sample in samples]
    names = {outer: "outer", outer.experts[0]: "0", outer.experts[1]: "1"}
    events: list[str] = []
    replayed: list[Tensor] = []

    def visit(block: nn.Module, replay: Replay) -> None:
        events.append(f"{names[block]}: {replay.waiting()}")
        with block.register_forward_hook(lambda _, __, output: replayed.append(output)):
            replay()

    found = run_layerwise(
        outer,
        list(names),
        samples,
        load=lambda block: events.append(f"load {names[block]}"),
        release=lambda block: events.append(f"release {names[block]}"),
        visit=visit,
    )

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert events == [
        *("load outer", "outer: [0, 1, 2]", "release outer"),
        *("load 0", "0: [0, 2]", "release 0"),
        *("load 1", "1: [1, 2]", "release 1"),
    ]
    alone = [outer(sample["x"], ()) for sample in samples]
    inner = [
        outer.experts[0](alone[0]),
        outer.experts[0](alone[2]),
        outer.experts[1](alone[1]),
        outer.experts[1](alone[2]),
    ]
    assert all(torch.equal(one, other) for one, other in zip(replayed, [*alone, *inner], strict=True))


def test_a_block_that_is_called_twice_is_an_error() -> None:
    """A visitor would see the inputs of the first call only, so the run ends instead."""
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.GELU(), layer)

    with pytest.raises(RuntimeError, match="calls block 0, Linear, more than once"):
        run_layerwise(model, [layer], inputs(2))
