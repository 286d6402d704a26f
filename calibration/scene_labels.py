"""Labels of drawn images of 112 pixels, which a vision encoder learns before it learns from answers."""

import string
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from calibration.drawing import COLORS, SHAPES, SIZES, SceneObject
from calibration.scenes import Scene

SIDE, PATCH = 112, 14  # pixels
PATCHES = SIDE // PATCH
REGIONS = PATCHES // 2  # of 2 x 2 patches, by row and by column
CHARACTERS = ":." + string.digits + string.ascii_uppercase
REGION_SLOTS = 3
BAR_SLOTS = 4
OBJECT_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1)
Labels: TypeAlias = dict[str, NDArray[np.int64]]


def label_arrays(scenes: Sequence[Scene]) -> Labels:
    """Return the class numbers of every scene; 0 for no content.

    `objects` [scenes, 4, 3], by quarter shape, color and size; `patches` [scenes, 64], the character at the center;
    `regions` [scenes, 16, 3], the first characters of 2 x 2 patches; `numbers` [scenes, 5], the count and bar heights.
    """
    return {
        "objects": np.array([[object_label(item) for item in scene.labels.objects] for scene in scenes]),
        "patches": np.array([patch_label(scene) for scene in scenes]),
        "regions": np.array([region_label(scene) for scene in scenes]),
        "numbers": np.array([number_label(scene) for scene in scenes]),
    }


def object_label(item: SceneObject | None) -> tuple[int, int, int]:
    """Return shape, color and size as class numbers; 0 for no object."""
    if item is None:
        return 0, 0, 0
    shape, color, size = SHAPES.index(item.shape), list(COLORS).index(item.color), list(SIZES).index(item.size)
    return shape + 1, color + 1, size + 1


def patch_label(scene: Scene) -> list[int]:
    """Return the class number of the character at the center of every patch; 0 for no character."""
    label = [0] * PATCHES**2
    for glyph in scene.labels.glyphs:
        row, column = (min(PATCHES - 1, max(0, int(value / PATCH))) for value in (glyph.y, glyph.x))
        label[row * PATCHES + column] = CHARACTERS.index(glyph.character) + 1
    return label


def region_label(scene: Scene) -> list[list[int]]:
    """Return the first characters of every region from left to right, padded with 0."""
    label: list[list[int]] = [[] for _ in range(REGIONS**2)]
    for glyph in scene.labels.glyphs:
        row, column = (min(REGIONS - 1, max(0, int(value / (2 * PATCH)))) for value in (glyph.y, glyph.x))
        label[row * REGIONS + column].append(CHARACTERS.index(glyph.character) + 1)
    return [(region + [0] * REGION_SLOTS)[:REGION_SLOTS] for region in label]


def number_label(scene: Scene) -> list[int]:
    """Return the count and the bar heights, padded with 0."""
    bars = scene.labels.bars
    return [scene.labels.count, *bars, *[0] * (BAR_SLOTS - len(bars))]
