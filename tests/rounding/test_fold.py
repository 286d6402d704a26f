"""Powers of two move between neighbors so that scales represent both; the function of the model stays the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.commands import recipe_argument
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ScaleError
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.recipe import Recipe
from mcpmq.rounding.block import quantize_to_nearest
from mcpmq.rounding.fold import find_folds
from mcpmq.rounding.smoothing import weight_scalings
from tests.rounding.oracle import tensor_parts
from tests.tiny import build_checkpoint, change_weights, multiply

BLOCK = "language.layers.1"
Change = Callable[[str, Tensor], Tensor]


def _changed(folder: Path, change: Change) -> Checkpoint:
    """Return a tiny checkpoint with changed weights."""
    return Checkpoint.open(change_weights(build_checkpoint(folder / "changed"), change))


def _plan(checkpoint: Checkpoint, recipe: str = "phone-int4") -> Plan:
    return make_plan(checkpoint, Recipe.load(recipe))


def _codes(weight: QTensor | Tensor) -> Tensor:
    assert not isinstance(weight, Tensor)
    return tensor_parts(weight)["codes"]


@pytest.fixture(scope="module")
def untouched(tiny_checkpoint: Path) -> dict[str, QTensor | Tensor]:
    """The rounded weights of a block of the tiny checkpoint."""
    weights, records = quantize_to_nearest(_plan(Checkpoint.open(tiny_checkpoint)), BLOCK)
    assert records == {}
    return weights


@pytest.mark.parametrize(
    "change",
    [
        {"mlp__up": -22, "mlp__down": 22},
        {"mlp__up": 24, "mlp__down": -24},
        {"mlp__up": -100, "mlp__down": 100},
        {"attention__v": -22, "attention__o": 22},
        {"input_norm": 25, "attention__q": -25, "attention__k": -25, "attention__v": -25},
        {"post_attention_norm": -30, "mlp__gate": 30, "mlp__up": 30},
        {"post_attention_norm": 22, "mlp__gate": -22, "mlp__up": -44, "mlp__down": 22},
    ],
)
def test_codes_of_a_rescaled_checkpoint_equal_those_of_the_untouched_one(
    change: dict[str, int], untouched: dict[str, QTensor | Tensor], tmp_path: Path
) -> None:
    """The function of the model is the same, and folds find the power of two, or one that has the same codes."""
    weights, records = quantize_to_nearest(_plan(_changed(tmp_path, multiply(**change))), BLOCK)

    quantized = [name for name in weights if not isinstance(weights[name], Tensor)]
    assert len(quantized) == 7
    for name in quantized:
        assert torch.equal(_codes(weights[name]), _codes(untouched[name])), name
    assert {name.removeprefix(f"{BLOCK}.").replace(".", "__") for name in records} >= change.keys() - {"mlp__down"}


def test_the_records_name_exponents_and_neighbors(tmp_path: Path) -> None:
    """The manifest has the number of channels by exponent, and a note."""
    change = multiply(attention__v=-22, attention__o=22)

    _, records = quantize_to_nearest(_plan(_changed(tmp_path, change)), BLOCK)

    exponents = {name.removeprefix(f"{BLOCK}.attention."): fields for name, fields in records.items()}
    assert exponents.keys() == {"v", "v.bias", "o"}
    assert exponents["v"]["row_exponents"] == exponents["v.bias"]["row_exponents"] == {22: 128}
    assert exponents["o"]["column_exponents"] == {-22: 256}
    note = f"scaled by powers of two with `{BLOCK}.attention.v`, so that scales are exact"
    assert exponents["o"]["deviation"] == note


@pytest.mark.parametrize("recipe", ["phone-int4", recipe_argument("quality-int4"), "phone-int8"])
@pytest.mark.parametrize("exponent", [-20, 24])
def test_single_channels_are_balanced(recipe: str, exponent: int, tmp_path: Path) -> None:
    """A sixteenth of the channels is rescaled: folds scale those alone, and the product stays as accurate."""
    original = Checkpoint.open(build_checkpoint(tmp_path / "original"))
    names = [f"{BLOCK}.mlp.up", f"{BLOCK}.mlp.down"]
    selected = slice(96, 128)

    def change(name: str, value: Tensor) -> Tensor:
        value = value.clone().float()
        if name == names[0]:
            value[selected] *= 2.0**exponent
        if name == names[1]:
            value[:, selected] *= 2.0**-exponent
        return value

    error = _product_error(_plan(original, recipe), original, names)

    assert _product_error(_plan(_changed(tmp_path, change), recipe), original, names) < 1.1 * error


def _product_error(plan: Plan, original: Checkpoint, names: list[str]) -> float:
    """Return the relative error of down @ up of a rounded block, against an original checkpoint."""
    specs = {spec.name: spec for spec in original.specs}
    weights, _ = quantize_to_nearest(plan, BLOCK)
    up, down = (original.load(specs[name]).float() for name in names)
    stored = [weights[name] for name in names]
    assert not any(isinstance(weight, Tensor) for weight in stored)
    rounded_up, rounded_down = map(dequantize, stored)  # type: ignore[arg-type]
    return float((rounded_down @ rounded_up - down @ up).norm() / (down @ up).norm())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"attention__q": -40, "attention__k": 40}, "attention.q"),
        ({"mlp__down": -30, "mlp__up": -30}, "mlp.up"),
        ({"mlp__gate": -90}, "mlp.gate"),
        ({"attention__o": 60}, "attention.o"),
    ],
)
def test_a_weight_without_a_counterpart_is_an_error(change: dict[str, int], name: str, tmp_path: Path) -> None:
    """No mapping between queries and keys exists, and no shift brings a whole block into range."""
    plan = _plan(_changed(tmp_path, multiply(**change)))

    with pytest.raises(ScaleError, match=f"`{BLOCK}.{name}` has a ") as error:
        quantize_to_nearest(plan, BLOCK)

    assert f'`"{BLOCK}.{name}" = "keep"`' in error.value.hint


@pytest.mark.parametrize("change", [{"attention__o": -22}, {"mlp__gate": -22}, {"mlp__down": -24}])
def test_a_small_weight_takes_powers_of_two_from_its_neighbor(change: dict[str, int], tmp_path: Path) -> None:
    """The typical magnitude of the weight is then represented, and no weight of the block is lost."""
    checkpoint = _changed(tmp_path, multiply(**change))
    plan = _plan(checkpoint)
    weights = {tensor.name: checkpoint.load(tensor.spec) for tensor in plan.blocks[BLOCK]}

    folds = find_folds(plan, BLOCK, weights)
    stored, _ = quantize_to_nearest(plan, BLOCK)

    scaling = weight_scalings(folds)
    assert folds
    assert all(len(one.channel_scale.unique()) == 1 for one in folds)
    for name, value in stored.items():
        if not isinstance(value, Tensor):
            expected = scaling[name].apply(weights[name]) if name in scaling else weights[name].float()
            assert (dequantize(value) - expected).norm() < 0.11 * expected.norm(), name
