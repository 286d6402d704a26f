"""Tests of the texts around images."""

from mcpmq.families import family_named
from mcpmq.serving.image_tags import with_image_tags

IMAGE = 0


def test_images_are_numbered_over_the_whole_chat() -> None:
    """MiniCPM-V 2.6 has the number before and a line feed after an image, 2.5 only the line feed, Qwen2-VL neither."""
    chat: list[list[str | int]] = [[IMAGE, "A?"], ["b"], ["c", IMAGE, IMAGE, "d", "e"]]
    expected = {
        "minicpm-v-2.6": [
            ["<image_id>0</image_id>", IMAGE, "\nA?"],
            ["b"],
            ["c\n<image_id>1</image_id>", IMAGE, "\n<image_id>2</image_id>", IMAGE, "\nd\ne"],
        ],
        "minicpm-v-2.5": [[IMAGE, "\nA?"], ["b"], ["c\n", IMAGE, "\n", IMAGE, "\nd\ne"]],
        "qwen2-vl": [[IMAGE, "A?"], ["b"], ["c", IMAGE, IMAGE, "de"]],
    }

    assert {name: with_image_tags(chat, family_named(name).prompt_format) for name in expected} == expected
