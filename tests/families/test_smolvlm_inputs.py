"""Tiles and tokens of SmolVLM, compared with transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn
from mcpmq.errors import CheckpointError
from mcpmq.families.smolvlm_inputs import SmolVlmTiling
from tests.checkpoint_tools import build_family, edit_json

SETTINGS: dict[str, Any] = {
    "max_image_size": {"longest_edge": 24},
    "size": {"longest_edge": 70},
    "image_mean": [0.4, 0.5, 0.6],
}


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), splits=st.booleans())
def test_tiles_are_those_of_transformers(width: int, height: int, splits: bool) -> None:
    """Images of any size and shape have the same rows, columns and pixels, also without tiles."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    given = {**SETTINGS, "do_image_splitting": splits}
    processor: Any = SmolVLMImageProcessorPil(**given)
    oracle = processor(Image.fromarray(pixels), return_row_col_info=True, return_tensors="np")
    tiling = SmolVlmTiling.model_validate(given)

    found = tiling.cut(Image.fromarray(pixels))

    assert found.grid == (oracle["rows"][0][0], oracle["cols"][0][0])
    np.testing.assert_allclose(tiling.pixel_values(found.tiles), oracle["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("image_size", "patch_size"), [(384, 14), (512, 16), (56, 14)])
def test_a_tile_has_the_positions_in_order(image_size: int, patch_size: int) -> None:
    """The torch class computes positions in float32; for the published sizes they are those of the table."""
    config = SmolVLMVisionConfig(hidden_size=4, image_size=image_size, patch_size=patch_size)
    embeddings, count = SmolVLMVisionEmbeddings(config), image_size // patch_size
    with torch.no_grad():
        for parameter in embeddings.patch_embedding.parameters():
            parameter.zero_()
        mask = torch.ones(1, count, count, dtype=torch.bool)
        found = embeddings(torch.zeros(1, 3, image_size, image_size), mask)[0]

    assert torch.equal(found, embeddings.position_embedding.weight)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "preprocessor_config.json",
            {"max_image_size": {"longest_edge": 28}},
            "`image_size` is 56 in config.json but 28",
        ),
        ("processor_config.json", {"image_seq_len": 64}, "`image_seq_len` is 4 in config.json but 64"),
    ],
)
def test_files_that_contradict_each_other_are_rejected(
    file: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The size of a tile and the number of its tokens are in several files."""
    path = build_family("smolvlm2", tmp_path)
    if not (path / file).exists():
        (path / file).write_text("{}")
    edit_json(path / file, **changes)

    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path).family.open_processor(path)


def test_answers_of_all_turns_begin_with_the_space_of_the_template(tmp_path: Path) -> None:
    """The template writes a space before an answer, which the tokenizer merges with it, and none in a prompt."""
    path = build_family("smolvlm2", tmp_path)
    processor = Checkpoint.open(path).family.open_processor(path)
    one = processor.encode("a", None, "How many?", "three circles")
    before = [Turn("user", ("How many?",)), Turn("assistant", ("three circles",))]
    several = processor.encode_turns("b", [*before, Turn("user", ("And?",)), Turn("assistant", ("no",))])
    first, _ = several.answer_spans

    assert processor.tokenizer.decode(one.answer_tokens.tolist()) == " three circles"
    assert several.tokens[slice(*first)].tolist() == one.answer_tokens.tolist()
