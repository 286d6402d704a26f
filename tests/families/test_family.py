"""Derived fields of the family description."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families import FAMILIES, family_named, family_of
from mcpmq.families.family import Family, SmoothingMapping, TensorSpec
from mcpmq.families.language_shape import LatentAttention, LinearAttention
from tests.families.published import PUBLISHED
from tests.tiny import CONFIG
from tests.tiny_families import TINY_FAMILIES


def test_a_smoothing_mapping_has_full_names_in_a_block() -> None:
    """Only the layer names change."""
    mapping = SmoothingMapping("language", "norm", ("mlp.gate", "mlp.up"), row_chunk=(1, 3), offset_norm=True)

    expected = SmoothingMapping("language", "b.2.norm", ("b.2.mlp.gate", "b.2.mlp.up"), (1, 3), True)
    assert mapping.in_block("b.2") == expected


def test_parameter_names_default_to_the_hub_name() -> None:
    """A tensor without module names is one parameter."""
    spec = TensorSpec("vision.norm", "vpm.norm.weight", (8,))

    assert spec.parameter_names == ("vpm.norm.weight",)
    assert replace(spec, module_names=("a", "b")).parameter_names == ("a", "b")
    assert spec.component == "vision"


def test_the_rotary_embedding_covers_the_whole_head_by_default() -> None:
    """`partial_rotary_dim` overrides the head dimension."""
    language = family_of(CONFIG).parse_architecture(CONFIG).language

    assert language.rotary_dim == language.head_dim == 64
    assert replace(language, partial_rotary_dim=24).rotary_dim == 24


def test_linear_attention_convolves_queries_keys_and_values() -> None:
    """Queries and keys have the key heads, values have the value heads."""
    linear = LinearAttention(
        (0,), num_key_heads=2, num_value_heads=3, key_head_dim=5, value_head_dim=7, conv_kernel_size=4
    )

    assert linear.conv_channels == 2 * 5 + 2 * 5 + 3 * 7


def test_minicpm3_has_latent_attention_and_scales() -> None:
    """Ranks, head dimensions and scales are those of the published configuration."""
    _, config, _ = PUBLISHED["MiniCPM3-4B"]
    language = family_of(config).parse_architecture(config).language

    assert language.latent_attention == LatentAttention(768, 256, 64, 64)
    assert (language.head_dim, language.rotary_dim, language.num_kv_heads) == (96, 32, 40)
    assert (language.embedding_scale, language.logits_divisor) == (12, 10)
    assert language.residual_scale == pytest.approx(1.4 / 62**0.5)


def test_minicpm_v_2_has_scales() -> None:
    """Scales are those of the published configuration."""
    _, config, _ = PUBLISHED["MiniCPM-V-2"]
    language = family_of(config).parse_architecture(config).language

    assert (language.embedding_scale, language.logits_divisor) == (12, 9)
    assert language.residual_scale == pytest.approx(1.4 / 40**0.5)


@pytest.mark.parametrize(
    ("name", "rope_theta"),
    [
        ("Qwen2-VL-7B-Instruct", 1e6),
        ("Qwen2.5-VL-3B-Instruct", 1e6),
        ("Qwen3-VL-4B-Instruct", 5e5),
        ("MiniCPM-V-4", 1e4),
    ],
)
def test_rope_theta_has_the_default_of_the_family(name: str, rope_theta: float) -> None:
    """Without a key, the frequency base is that of the transformers class."""
    _, config, _ = PUBLISHED[name]
    config = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    if text := config.get("text_config"):
        config["text_config"] = {key: value for key, value in text.items() if key != "rope_parameters"}

    assert family_of(config).parse_architecture(config).language.rope_theta == rope_theta


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_another_process_finds_its_family_by_name(family: Family) -> None:
    """The functions of a family are not sent."""
    assert pickle.loads(pickle.dumps(family)) is family


def test_family_names_are_unique() -> None:
    """A manifest names a family."""
    names = [family.name for family in FAMILIES]

    assert len(set(names)) == len(names)


TEXT_CHANGES = (
    {"hidden_act": "gelu"},
    {"use_sliding_window": True},
    {"layer_types": ["full_attention", "sliding_attention"]},
)
QWEN_VL = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5")
UNSUPPORTED: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (name, "text_config", one)
        for name in (*QWEN_VL, "minicpm-v-2.6", "minicpm3", "smolvlm2")
        for one in TEXT_CHANGES
    ),
    *((name, "vision_config", {"hidden_act": "relu"}) for name in (*QWEN_VL, "minicpm-v-2.6", "minicpm-v-4.6")),
    ("smolvlm2", "vision_config", {"hidden_act": "gelu"}),
    ("smolvlm2", "text_config", {"attention_bias": True}),
    ("smolvlm2", "text_config", {"mlp_bias": True}),
    ("smolvlm2", "text_config", {"model_type": "mistral"}),
    ("smolvlm2", "scale_factor", {"scale_factor": 3}),
    *((name, "vision_config", {"rope_parameters": {"rope_theta": 5000.0}}) for name in QWEN_VL),
]


@pytest.mark.parametrize(("name", "key", "changes"), UNSUPPORTED)
def test_functions_that_formats_do_not_have_are_rejected(name: str, key: str, changes: dict[str, Any]) -> None:
    """torch would compute another activation function or attention than the exported files; the key is named."""
    config = dict(next(family for family in TINY_FAMILIES if family.name == name).config)
    config |= {key: {**config[key], **changes}} if isinstance(config.get(key), dict) else changes

    with pytest.raises(CheckpointError, match=next(iter(changes))):
        family_named(name).parse_architecture(config)
