"""Prompt formats of the families."""

from pathlib import Path

import pytest

from mcpmq.families import family_of
from mcpmq.families.prompt_format import PromptFormat
from tests.tiny_families import TINY_FAMILIES, TinyFamily


def test_required_tokens_depend_on_the_image_tags() -> None:
    """Image id tags are required only if they are used; slices with image tags start with `<image>`."""
    plain, older = PromptFormat(), PromptFormat("<|eot_id|>", uses_image_id=False, image_tags_for_slices=True)

    assert set(plain.required_tokens) - set(older.required_tokens) == {"<image_id>", "</image_id>", "<|im_end|>"}
    assert (plain.opening_tags, older.opening_tags) == (("<image>", "<slice>"), ("<image>",))


@pytest.mark.parametrize("tiny", TINY_FAMILIES, ids=lambda tiny: tiny.name + tiny.variant)
def test_a_sample_ends_with_the_end_of_turn_token(tiny: TinyFamily, tmp_path: Path) -> None:
    """The last token ends the turn, and the position ids of a text sample are consecutive on all axes."""
    family, folder = family_of(tiny.config), tiny.build(tmp_path / "tiny")
    processor = family.open_processor(folder)

    inputs = processor.encode("text", None, "How many?", "three")

    tokenizer = processor.tokenizer
    assert tokenizer.id_to_token(inputs.tokens[-1]) == family.prompt_format.end_of_turn
    assert (family.open_vision_inputs(folder).position_ids(inputs) == range(len(inputs.tokens))).all()
