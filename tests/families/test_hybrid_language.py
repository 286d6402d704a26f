"""Linear attention layers of Qwen3.5, compared with transformers."""

from typing import Any

import pytest
from transformers import Qwen3_5TextConfig

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import validate_config
from mcpmq.families.hybrid_language import HybridConfig
from mcpmq.families.language import normalize_text_config
from tests.families.test_language import SIZES


@pytest.mark.parametrize("keys", [{}, {"full_attention_interval": 3}, {"layer_types": ["full_attention"] * 9}])
def test_linear_attention_layers_are_those_of_transformers(keys: dict[str, Any]) -> None:
    """By default every fourth layer has full attention, and a quarter of the head channels has rotary embedding."""
    config = SIZES | {"num_hidden_layers": 9} | keys
    expected = Qwen3_5TextConfig(**config)

    shape = validate_config(HybridConfig, normalize_text_config(config)).to_shape("qwen35")

    kinds = [
        "linear_attention" if shape.is_linear_attention(layer) else "full_attention"
        for layer in range(shape.num_layers)
    ]
    assert kinds == expected.layer_types
    assert shape.linear_attention
    assert (shape.linear_attention.num_key_heads, shape.linear_attention.num_value_heads) == (
        expected.linear_num_key_heads,
        32,
    )
    assert (shape.head_dim, shape.partial_rotary_dim) == (expected.head_dim, 64)


def test_a_wrong_number_of_layer_types_is_rejected() -> None:
    """`layer_types` needs one entry per layer."""
    config = validate_config(HybridConfig, SIZES | {"layer_types": ["full_attention"]})

    with pytest.raises(CheckpointError, match="has 2 layers but 1 `layer_types`"):
        config.to_shape("qwen35")
