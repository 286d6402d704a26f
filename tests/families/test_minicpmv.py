"""What the family says about the published checkpoint and about configurations that are not it."""

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families import family_named, family_of
from tests.families.published import PUBLISHED
from tests.tiny import CONFIG


def test_the_published_model_has_as_many_weights_as_were_published() -> None:
    """339 tensors of 2.6 in the language model, 196 matrices in its layers."""
    _, config, _ = PUBLISHED["MiniCPM-V-2_6"]
    family = family_of(config)
    specs = family.tensors(family.architecture(config))

    assert sum(spec.hub_name.startswith("llm.") for spec in specs) == 339
    assert sum(spec.role == "matrix" and spec.component == "language" for spec in specs) == 196


@pytest.mark.parametrize(
    ("version", "name"),
    [(2.6, "2.6"), ("2.6", "2.6"), ("2.5", "2.5"), (None, "2.5"), (4, "4.0"), ("4", "4.0"), (4.0, "4.0"), (4.5, "4.5")],
)
def test_the_version_may_be_a_number_a_text_or_absent(version: object, name: str) -> None:
    """All are found in published configurations."""
    assert family_of(CONFIG | {"version": version}) is family_named(f"minicpm-v-{name}")


@pytest.mark.parametrize("text", [{"num_experts": 0}, {}, None, []])
def test_no_experts_are_no_mixture(text: object) -> None:
    """Dense configurations may have the key, with nothing behind it; what is no table says nothing."""
    assert family_of({"model_type": "minicpmv4_7", "text_config": text}).name == "minicpm-v-4.7"


@pytest.mark.parametrize("version", [3.0, "", [], "2.60", True])
def test_another_version_is_another_family(version: object) -> None:
    """It is not taken for one of those that are known; the error names these."""
    with pytest.raises(CheckpointError, match="no family recognises") as caught:
        family_of(CONFIG | {"version": version})

    assert "minicpm-v-2.6" in caught.value.hint


@pytest.mark.parametrize("key", ["tie_word_embeddings", "drop_vision_last_layer"])
def test_what_2_6_does_not_have_is_refused(key: str) -> None:
    """A configuration that asks for it belongs to another model."""
    config = CONFIG | {key: True}

    with pytest.raises(CheckpointError, match=key):
        family_of(config).architecture(config)


@pytest.mark.parametrize(
    ("config", "name", "nearest"),
    [
        ({"model_type": "qwen", "visual": {}, "quantization_config": {"bits": 4}}, "Qwen-VL-Chat of 2023", "qwen2-vl"),
        ({"model_type": "minicpmv4_7", "text_config": {"num_experts": 256}}, "mixtures of experts", "MiniCPM-V-4.7-1B"),
        ({"model_type": "qwen3_vl_moe", "text_config": {"num_experts": 128}}, "mixtures of experts", "Qwen3-VL-8B"),
        ({"model_type": "qwen3_5_moe_text", "num_experts": 256}, "mixtures of experts", "dense"),
    ],
)
def test_what_is_known_and_not_supported_is_refused_with_the_nearest_family(
    config: dict[str, object], name: str, nearest: str
) -> None:
    """Recognised by its configuration, not taken for something unknown."""
    with pytest.raises(CheckpointError, match=name) as caught:
        family_of(config)

    assert nearest in caught.value.hint
