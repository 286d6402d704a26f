"""Language model keys of a raw config.json."""

from typing import Any

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import validate_config
from mcpmq.families.language import LanguageConfig, normalize_text_config

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("key", ["text_config", "rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("value", ["mrope", [1], 5])
def test_tables_must_be_objects(key: str, value: object) -> None:
    """The error names the key."""
    with pytest.raises(CheckpointError, match=f"`{key}` of .* is not an object"):
        normalize_text_config({**SIZES, key: value})


def test_a_shape_has_the_configured_sizes_and_the_overrides() -> None:
    """Overrides have precedence over keys; other fields have the values of Llama."""
    shape = validate_config(LanguageConfig, SIZES | {"rms_norm_eps": 1e-5}).to_shape(
        "qwen3", qk_norm=True, num_kv_heads=4
    )

    assert (shape.gguf_architecture, shape.hidden_size, shape.num_layers, shape.vocab_size) == ("qwen3", 256, 2, 320)
    assert (shape.head_dim, shape.intermediate_size, shape.context_length, shape.norm_epsilon) == (64, 512, 2048, 1e-5)
    assert (shape.qk_norm, shape.num_kv_heads) == (True, 4)
    assert (shape.attention_bias, shape.tied_embeddings, shape.rope_theta) == (False, False, 10000.0)


@pytest.mark.parametrize(
    ("keys", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 5e5, "text_config": {"rope_theta": 2e6}}, 2e6),
    ],
)
def test_rope_theta_is_read_from_old_and_new_configurations(keys: dict[str, Any], theta: float) -> None:
    """The innermost key has precedence."""
    assert validate_config(LanguageConfig, normalize_text_config(SIZES | keys)).to_shape("llama").rope_theta == theta


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "unsupported rope_type `yarn`"),
        ({"type": "linear", "factor": 2.0}, "unsupported rope_type `linear`"),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 1024},
            "beyond `original_max_position_embeddings`",
        ),
    ],
)
def test_unsupported_rope_types_are_rejected(rope: dict[str, Any], message: str) -> None:
    """Another rope type, and LongRoPE beyond the original context, raise CheckpointError."""
    with pytest.raises(CheckpointError, match=message):
        normalize_text_config(SIZES | {"rope_scaling": rope})
