"""Vision encoders of Qwen-VL with unpublished sizes, compared with transformers."""

from copy import deepcopy

import pytest

from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_of
from tests.tiny_families import TINY_FAMILIES


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5"])
def test_tensor_shapes_follow_the_spatial_merge_size(name: str) -> None:
    """With 9 patches per token, names and shapes are those of the torch class."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == name]
    config = {key: deepcopy(value) for key, value in tiny.config.items() if not key.endswith("_token_id")}
    config["vision_config"]["spatial_merge_size"] = 3
    family = family_of(config)

    specs = family.tensor_specs(family.parse_architecture(config))

    tower = [spec for spec in specs if spec.component in ("vision", "projector")]
    assert {name: spec.shape for spec in tower for name in spec.parameter_names} == {
        name: tuple(parameter.shape)
        for name, parameter in build_module(family, config).named_parameters()
        if ".visual." in name
    }
