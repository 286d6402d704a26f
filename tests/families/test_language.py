"""What a raw config.json says of a language model, and what it may not ask for."""

from typing import Any

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import checked
from mcpmq.families.language import LanguageConfig, text_keys

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
}


def test_a_shape_has_the_sizes_of_the_configuration_and_the_differences_of_its_family() -> None:
    """Everything else is as in Llama; a difference wins over a key."""
    shape = checked(LanguageConfig, SIZES | {"rms_norm_eps": 1e-5}).shape("qwen3", qk_norm=True, kv_heads=4)

    assert (shape.architecture, shape.hidden, shape.layers, shape.vocabulary) == ("qwen3", 256, 2, 320)
    assert (shape.head_width, shape.ffn, shape.context, shape.norm_epsilon) == (64, 512, 2048, 1e-5)
    assert (shape.qk_norm, shape.kv_heads) == (True, 4)
    assert (shape.attention_bias, shape.tied_head, shape.rope_theta) == (False, False, 10000.0)


@pytest.mark.parametrize(
    ("keys", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 5e5, "text_config": {"rope_theta": 2e6}}, 2e6),
    ],
)
def test_later_configurations_say_what_earlier_ones_said_elsewhere(keys: dict[str, Any], theta: float) -> None:
    """The innermost place wins."""
    assert checked(LanguageConfig, text_keys(SIZES | keys)).shape("llama").rope_theta == theta


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "asks for `yarn` positions"),
        ({"type": "linear", "factor": 2.0}, "asks for `linear` positions"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, "stretches positions beyond"),
    ],
)
def test_positions_that_are_not_supported_are_refused(rope: dict[str, Any], message: str) -> None:
    """A model that is read otherwise than it was trained would be worse for no reason that shows."""
    with pytest.raises(CheckpointError, match=message):
        text_keys(SIZES | {"rope_scaling": rope})
