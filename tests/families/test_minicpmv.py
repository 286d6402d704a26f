"""Selection of a family, and tensors of the published MiniCPM-V 2.6."""

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families import family_named, family_of
from tests.families.published import PUBLISHED
from tests.tiny import CONFIG


def test_the_published_model_has_the_published_number_of_tensors() -> None:
    """The language model of 2.6 has 339 tensors, and its layers have 196 matrices."""
    _, config, _ = PUBLISHED["MiniCPM-V-2_6"]
    family = family_of(config)
    specs = family.tensor_specs(family.parse_architecture(config))

    assert sum(spec.hub_name.startswith("llm.") for spec in specs) == 339
    assert sum(spec.role == "matrix" and spec.component == "language" for spec in specs) == 196


@pytest.mark.parametrize(
    ("version", "name"),
    [(2.6, "2.6"), ("2.6", "2.6"), ("2.5", "2.5"), (None, "2.5"), (4, "4.0"), ("4", "4.0"), (4.0, "4.0"), (4.5, "4.5")],
)
def test_the_version_can_be_a_number_a_string_or_missing(version: object, name: str) -> None:
    """All of these forms occur in published configurations."""
    assert family_of(CONFIG | {"version": version}) is family_named(f"minicpm-v-{name}")


@pytest.mark.parametrize("text", [{"num_experts": 0}, {}, None, []])
def test_a_model_without_experts_is_supported(text: object) -> None:
    """A dense configuration may have `num_experts` = 0 or an empty `text_config`."""
    assert family_of({"model_type": "minicpmv4_7", "text_config": text}).name == "minicpm-v-4.7"


@pytest.mark.parametrize("version", [3.0, "", [], "2.60", True])
def test_an_unknown_version_is_rejected(version: object) -> None:
    """The error lists the supported families."""
    with pytest.raises(CheckpointError, match="unknown model: model_type `minicpmv`") as caught:
        family_of(CONFIG | {"version": version})

    assert "minicpm-v-2.6" in caught.value.hint


@pytest.mark.parametrize("key", ["tie_word_embeddings", "drop_vision_last_layer"])
def test_an_unsupported_feature_is_rejected(key: str) -> None:
    """The error names the key that enables the feature."""
    config = CONFIG | {key: True}

    with pytest.raises(CheckpointError, match=key):
        family_of(config).parse_architecture(config)


@pytest.mark.parametrize(
    ("config", "name", "nearest"),
    [
        ({"model_type": "qwen", "visual": {}, "quantization_config": {"bits": 4}}, "Qwen-VL-Chat of 2023", "qwen2-vl"),
        ({"model_type": "minicpmv4_7", "text_config": {"num_experts": 256}}, "mixture-of-experts", "Qwen3.5-35B-A3B"),
        ({"model_type": "qwen3_5_moe_text", "num_experts": 256}, "mixture-of-experts", "Qwen3.5-35B-A3B"),
    ],
)
def test_known_unsupported_models_are_rejected_with_an_alternative(
    config: dict[str, object], name: str, nearest: str
) -> None:
    """The error gives the reason, and the hint names the nearest supported family."""
    with pytest.raises(CheckpointError, match=name) as caught:
        family_of(config)

    assert nearest in caught.value.hint
