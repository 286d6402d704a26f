"""Plans and tensors of the published configurations."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_named, family_of
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.families.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plan_of_a_published_model_has_the_published_size(name: str, tmp_path: Path) -> None:
    """The checkpoint has 2 bytes per weight, and the plan the sizes of the schemes of phone-int4."""
    family, config, weights = PUBLISHED[name]
    plan = make_plan(Checkpoint.open(header_only(tmp_path / name, config)), Recipe.load("phone-int4"))

    assert plan.checkpoint.family.name == family
    assert plan.checkpoint.nbytes == 2 * weights
    int4 = [tensor for tensor in plan.tensors if str(tensor.scheme) == "int4-g32"]
    int8 = [tensor for tensor in plan.tensors if str(tensor.scheme) == "int8-g32"]
    kept = [tensor for tensor in plan.tensors if tensor.scheme is None]
    assert all(tensor.name.startswith("language.layers.") for tensor in int4)
    sizes = (18 / 32, 34 / 32, 2)  # bytes per weight; 32 weights have codes and a scale of 2 bytes
    groups = zip((int4, int8, kept), sizes, strict=True)
    expected = sum(prod(tensor.spec.shape) * size for tensors, size in groups for tensor in tensors)
    assert plan.nbytes == pytest.approx(expected, rel=1e-3)  # the last group of a row can be shorter


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_and_defaults_are_those_of_the_torch_class(name: str) -> None:
    """Parameter names, shapes and defaults of optional keys agree with the torch module on the meta device."""
    family, config, _ = PUBLISHED[name]
    reduced = _without(config, "rope_theta", "rms_norm_eps")
    module: Any = build_module(family_named(family), reduced)
    architecture, text = family_of(reduced).parse_architecture(reduced), module.config.get_text_config()

    specs = family_of(reduced).tensor_specs(architecture)
    assert {name: spec.shape for spec in specs for name in spec.parameter_names} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    assert len({spec.name for spec in specs}) == len({spec.hub_name for spec in specs}) == len(specs)
    rope = text.rope_parameters.get("full_attention", text.rope_parameters)  # Gemma 3 has a base of each attention type
    assert architecture.language.rope_theta == rope["rope_theta"]
    if local := architecture.language.local_attention:
        assert local.rope_theta == text.rope_parameters["sliding_attention"]["rope_theta"]
    name_of_epsilon = "norm_eps" if text.model_type == "lfm2" else "rms_norm_eps"
    assert architecture.language.norm_epsilon == getattr(text, name_of_epsilon)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert architecture.language.rotary_dim == head_dim * rope.get("partial_rotary_factor", 1)


def _without(config: dict[str, object], *keys: str) -> dict[str, object]:
    inner = {name: _without(value, *keys) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in inner.items() if name not in keys}


def header_only(folder: Path, config: dict[str, object]) -> Path:
    """Write a checkpoint with a valid header and a sparse file for the weights."""
    folder.mkdir()
    family, header, end = family_of(config), {}, 0
    for spec in family.tensor_specs(family.parse_architecture(config)):
        begin, end = end, end + 2 * prod(spec.shape)
        header[spec.hub_name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(file.tell() + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
