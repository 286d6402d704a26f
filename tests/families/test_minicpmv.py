"""What the family says about the published checkpoint and about configurations that are not it."""

from math import prod

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families import family_named, family_of
from tests.tiny import CONFIG

PUBLISHED = CONFIG | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151666,
    "query_num": 64,
    "image_size": 448,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 980,
        "patch_size": 14,
    },
}


def test_the_published_model_has_as_many_weights_as_were_published() -> None:
    """8,099,175,152 in all, 339 tensors of them in the language model, 196 matrices in its layers."""
    family = family_of(PUBLISHED)
    specs = family.tensors(family.architecture(PUBLISHED))

    assert sum(prod(spec.shape) for spec in specs) == 8_099_175_152
    assert sum(spec.hub_name.startswith("llm.") for spec in specs) == 339
    assert sum(spec.role == "matrix" and spec.component == "language" for spec in specs) == 196
    assert len({spec.name for spec in specs}) == len({spec.hub_name for spec in specs}) == len(specs)


@pytest.mark.parametrize("version", [2.6, "2.6"])
def test_the_version_may_be_a_number_or_a_text(version: object) -> None:
    """Both are found in published configurations."""
    assert family_of(CONFIG | {"version": version}) is family_named("minicpm-v-2.6")


@pytest.mark.parametrize("version", [2.5, 4.0, None, [], "2.60"])
def test_another_version_is_another_family(version: object) -> None:
    """2.5 has other slices and another language model; it is not taken for 2.6."""
    with pytest.raises(CheckpointError, match="no family recognises"):
        family_of(CONFIG | {"version": version})


@pytest.mark.parametrize("key", ["tie_word_embeddings", "drop_vision_last_layer"])
def test_what_2_6_does_not_have_is_refused(key: str) -> None:
    """A configuration that asks for it belongs to another model."""
    config = CONFIG | {key: True}

    with pytest.raises(CheckpointError, match=key):
        family_of(config).architecture(config)
