"""Which layers of Qwen3.5 attend linearly, against transformers' own counting."""

from typing import Any

import pytest
from transformers import Qwen3_5TextConfig

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import checked
from mcpmq.families.hybrid_language import HybridConfig
from mcpmq.families.language import text_keys
from tests.families.test_language import SIZES


@pytest.mark.parametrize("keys", [{}, {"full_attention_interval": 3}, {"layer_types": ["full_attention"] * 9}])
def test_layers_that_attend_linearly_are_those_of_transformers(keys: dict[str, Any]) -> None:
    """Every fourth does not, where a configuration says nothing; a quarter of a head's channels is turned."""
    config = SIZES | {"num_hidden_layers": 9} | keys
    theirs = Qwen3_5TextConfig(**config)

    shape = checked(HybridConfig, text_keys(config)).shape("qwen35")

    kinds = ["linear_attention" if shape.is_linear(layer) else "full_attention" for layer in range(shape.layers)]
    assert kinds == theirs.layer_types
    assert shape.linear
    assert (shape.linear.key_heads, shape.linear.value_heads) == (theirs.linear_num_key_heads, 32)
    assert (shape.head_width, shape.rope_width) == (theirs.head_dim, 64)


def test_types_of_other_layers_are_refused() -> None:
    """As many types as layers, or none."""
    config = checked(HybridConfig, SIZES | {"layer_types": ["full_attention"]})

    with pytest.raises(CheckpointError, match="has 2 layers and the types of 1"):
        config.shape("qwen35")
