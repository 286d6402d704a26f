"""What a family writes around images, and the rooms that read it."""

from pathlib import Path

import pytest

from mcpmq.families import family_of
from mcpmq.families.prompt_format import Layout
from tests.tiny_families import TINY_FAMILIES, TinyFamily


def test_a_tokenizer_must_have_what_is_written() -> None:
    """Numbers only where images are numbered; a slice that is written as an image begins as one."""
    plain, older = Layout(), Layout("<|eot_id|>", numbered=False, slices_as_images=True)

    assert set(plain.needed) - set(older.needed) == {"<image_id>", "</image_id>", "<|im_end|>"}
    assert (plain.opening, older.opening) == (("<image>", "<slice>"), ("<image>",))


@pytest.mark.parametrize("tiny", TINY_FAMILIES, ids=lambda tiny: tiny.name + tiny.variant)
def test_a_turn_ends_as_the_family_says(tiny: TinyFamily, tmp_path: Path) -> None:
    """With the last token of every sample; and the tokens of a text stand one after the other, along every axis."""
    family, folder = family_of(tiny.config), tiny.build(tmp_path / "tiny")
    processor = family.processor(folder)

    inputs = processor.encode("text", None, "How many?", "three")

    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    assert tokenizer.id_to_token(inputs.tokens[-1]) == family.layout.end_of_turn
    assert (family.pixels(folder).positions(inputs) == range(len(inputs.tokens))).all()
