"""The towers of Qwen-VL where they are not as published, against transformers' own classes."""

from copy import deepcopy

import pytest

from mcpmq.execution.torch_model import module_of
from mcpmq.families import family_of
from tests.tiny_families import TINY_FAMILIES


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_squares_of_another_size_make_mergers_of_another_width(name: str) -> None:
    """Nine patches a token: every tensor that the class has, in its shape."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == name]
    config = {key: deepcopy(value) for key, value in tiny.config.items() if not key.endswith("_token_id")}
    config["vision_config"]["spatial_merge_size"] = 3
    family = family_of(config)

    specs = family.tensors(family.architecture(config))

    tower = [spec for spec in specs if spec.component in ("vision", "projector")]
    assert {name: spec.shape for spec in tower for name in spec.parameters} == {
        name: tuple(parameter.shape)
        for name, parameter in module_of(family, config).named_parameters()
        if ".visual." in name
    }
