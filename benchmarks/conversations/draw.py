"""Draw random conversations of several turns, images and system prompts."""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mcpmq.dataset import ImageSource, Turn

WORDS = ("red", "sign", "Où?", "three", "the\nlist", " two  spaces", "1,024", "é", "看", "is it", "A.", "no")
SIDES = (28, 56, 70, 100, 150, 220, 330)
MAX_TURNS, MAX_IMAGES = 4, 3  # prompts of a conversation, images of a prompt


def draw_images(folder: Path, count: int, random: Random) -> list[Path]:
    """Write random images of different sizes, and return their files."""
    files = []
    for number in range(count):
        width, height = random.choice(SIDES), random.choice(SIDES)
        noise = np.random.default_rng(random.randrange(1 << 32)).integers(0, 256, (height, width, 3), np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(noise).save(files[-1])
    return files


def draw_conversation(images: list[Path], random: Random, *, has_system_prompt: bool = True) -> tuple[Turn, ...]:
    """Return the turns of a conversation; the images are in any place of its prompts, also next to one another."""
    turns = []
    if has_system_prompt and random.random() < 0.3:
        turns.append(Turn("system", (_text(random),)))
    for _ in range(random.randint(1, MAX_TURNS)):
        turns += [Turn("user", _content(images, random)), Turn("assistant", (_text(random),))]
    return tuple(turns)


def _content(images: list[Path], random: Random) -> tuple[str | ImageSource, ...]:
    chosen = random.choices(images, k=random.choice((0, 0, 1, 1, 2, MAX_IMAGES))) if images else []
    parts: list[str | ImageSource] = [*chosen, *(_text(random) for _ in range(random.randint(1, 2)))]
    random.shuffle(parts)
    return tuple(parts)


def _text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, 5))).strip()
