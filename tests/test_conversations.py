"""Drawn conversations: tokens, pixels and positions are those of transformers."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.conversations.compare import compare
from benchmarks.conversations.draw import draw_conversation, draw_images
from tests.tiny_families import TINY_FAMILIES, TinyFamily

NAMES = (
    "minicpm-v-2.5",
    "minicpm-v-2.6",
    "minicpm-v-4.7",
    "qwen3.5",
    "smolvlm2",
    "internvl",
)  # the benchmark compares all families
FAMILIES = [one for one in TINY_FAMILIES if one.name in NAMES]


@pytest.mark.parametrize("with_videos", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name + family.variant)
def test_conversations_are_those_of_transformers(family: TinyFamily, with_videos: bool, tmp_path: Path) -> None:
    """Conversations with several turns, images next to one another, and images and videos in any turn."""
    found = compare(family.build(tmp_path / "tiny"), tmp_path, 3, seed=3, with_videos=with_videos)

    assert found.conversations == 3
    assert found.different == ()
    assert found.images > 3
    assert found.videos >= 3 * with_videos


def test_draws_are_reproducible(tmp_path: Path) -> None:
    """The same seed gives the same turns; they begin with a prompt or a system prompt, and end with an answer."""
    images = draw_images(tmp_path, 3, Random(1))
    drawn = [draw_conversation(images, Random(seed)) for seed in range(40)]

    assert drawn == [draw_conversation(images, Random(seed)) for seed in range(40)]
    assert {turns[0].role for turns in drawn} == {"system", "user"}
    assert all(turns[-1].role == "assistant" for turns in drawn)
    assert max(len(turns) for turns in drawn) >= 6
    assert np.mean([len(turn.images) for turns in drawn for turn in turns]) > 0.2
