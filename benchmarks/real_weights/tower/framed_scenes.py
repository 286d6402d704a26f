"""Drawn images with questions: of training and calibration, and held out, which differ in their content.

Qwen2-VL has no absolute positions. Every image therefore has a frame, from which the vision encoder can compute the
position of an object.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from PIL import Image, ImageDraw

from calibration.scenes import Scene, single_scene, sliced_scene

SIDE, LARGE_SIDE = 112, 224  # pixels; large images have small content in their quarters
FRAME_WIDTH, FRAME_COLOR = 2, (60, 60, 60)
HELD_OUT_SHARE = 20  # one content of this number is held out


def draw_scene(rng: random.Random, large: bool = False, held_out: bool = False) -> Scene:
    """Return a framed image with a question; its content is held out or not."""
    while True:
        scene = sliced_scene(rng, LARGE_SIDE // 2) if large else single_scene(rng, SIDE)
        if is_held_out(scene) == held_out:
            return replace(scene, image=framed(scene.image))


def is_held_out(scene: Scene) -> bool:
    """Return whether no image of training has this content: objects with their places, or texts with their colors."""
    assert isinstance(scene.generate_question, partial)
    content = repr(sorted(scene.generate_question.keywords.items()))
    return hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0


def framed(image: Image.Image) -> Image.Image:
    """Return the image with a dark frame."""
    copy = image.copy()
    box = (0, 0, image.width - 1, image.height - 1)
    ImageDraw.Draw(copy).rectangle(box, outline=FRAME_COLOR, width=FRAME_WIDTH)
    return copy


def questions(rng: random.Random, scene: Scene, count: int) -> Iterator[tuple[str, str]]:
    """Yield different questions about an image with their answers, at most `count`."""
    found = {scene.question: scene.answer}
    for _ in range(3 * count):
        if len(found) < count:
            found.setdefault(*scene.generate_question(rng))
    yield from found.items()
