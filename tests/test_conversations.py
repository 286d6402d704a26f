"""Drawn conversations: tokens, pixels and positions are those of transformers."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.conversations.compare import compare
from benchmarks.conversations.draw import draw_conversation, draw_images
from mcpmq.families import family_named
from tests.tiny_families import EXPERT_FAMILIES, TINY_FAMILIES, TinyFamily

NAMES = (
    "minicpm-v-2.5",
    "minicpm-v-2.6",
    "minicpm-v-4.7",
    "qwen3.5",
    "smolvlm2",
    "internvl",
    "gemma-3",
    "lfm2-vl",
    "qwen2.5-omni",
    "qwen3-vl-moe",
    "qwen3.5-moe",
    "minicpm-v-4.7-moe",
)  # the benchmark compares all families
FAMILIES = [one for one in (*TINY_FAMILIES, *EXPERT_FAMILIES) if one.name in NAMES]


CASES = [
    pytest.param(family, with_videos, id=f"{family.name}{family.variant}-{with_videos}")
    for family in FAMILIES
    for with_videos in (False, True)
    if family_named(family.name).prompt_format.supports_video or not with_videos
]


@pytest.mark.parametrize(("family", "with_videos"), CASES)
def test_conversations_are_those_of_transformers(family: TinyFamily, with_videos: bool, tmp_path: Path) -> None:
    """Conversations with several turns, images next to one another, and images and videos in any turn."""
    found = compare(family.build(tmp_path / "tiny"), tmp_path, 3, seed=3, with_videos=with_videos)

    assert found.conversations == 3
    assert found.different == ()
    assert found.images > 3
    assert found.videos >= 3 * with_videos
    assert (found.audios > 0) == (family.name == "qwen2.5-omni")


def test_videos_for_a_family_without_videos_are_an_error(tmp_path: Path) -> None:
    """The comparison ends at once, instead of drawing conversations that are all rejected."""
    [family] = [one for one in FAMILIES if one.name == "smolvlm2"]
    with pytest.raises(ValueError, match="smolvlm2 does not support videos"):
        compare(family.build(tmp_path / "tiny"), tmp_path, 3, seed=3, with_videos=True)


def test_draws_are_reproducible(tmp_path: Path) -> None:
    """The same seed gives the same turns; they begin with a prompt or a system prompt, and end with an answer."""
    images = draw_images(tmp_path, 3, Random(1))
    drawn = [draw_conversation(images, Random(seed)) for seed in range(40)]

    assert drawn == [draw_conversation(images, Random(seed)) for seed in range(40)]
    assert {turns[0].role for turns in drawn} == {"system", "user"}
    assert all(turns[-1].role == "assistant" for turns in drawn)
    assert max(len(turns) for turns in drawn) >= 6
    assert np.mean([len(turn.images) for turns in drawn for turn in turns]) > 0.2
