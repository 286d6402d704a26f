"""Adaptive slicing: how many slices an image is cut into, how large, and how their pixels are packed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import Checked, checked
from mcpmq.families.family import Inputs
from mcpmq.families.position_ids import canvas_positions
from mcpmq.families.preprocessor import Deviations, Means, Preprocessor
from mcpmq.system.json_file import read_json

Slice = NDArray[np.uint8]


class Slicing(Preprocessor):
    """The part of preprocessor_config.json that decides the pixels."""

    scale_resolution: PositiveInt = Field(default=448, le=4096)  # a slice has about this side squared
    max_slice_nums: PositiveInt = Field(default=9, le=64)
    slice_mode: bool = True
    use_image_id: bool = True
    image_feature_size: PositiveInt | None = None
    norm_mean: Means = (0.5, 0.5, 0.5)
    norm_std: Deviations = (0.5, 0.5, 0.5)

    @property
    def unit(self) -> int:
        """What the sides of a slice are multiples of, in pixels."""
        return self.patch_size

    def tokens_of(self, part: Slice, queries: int) -> int:
        """Tokens that a slice becomes: as many as the resampler has queries."""
        return queries

    def graph_inputs(self, part: Slice) -> dict[str, NDArray[Any]]:
        """One slice for the vision graph: float32 [1, 3, patch, patch * patches], and its size in patches."""
        return {"pixel_values": self.packed([part])[None], "tgt_sizes": target_sizes([part], self.patch_size)}

    def packed(self, slices: Sequence[Slice]) -> NDArray[np.float32]:
        """All slices side by side: float32 [3, patch, patch * patches]."""
        mean, std = self._normalisation()
        return np.concatenate([packed_pixels(part, mean, std, self.patch_size) for part in slices], axis=-1)

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.norm_mean, self.norm_std

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Tokens stand one after the other, whatever they are of: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


class ConfiguredSlicing(Slicing):
    """The same of 2.0, whose config.json says how images are sliced; a file of its own came later."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: a file is broken, or both contradict one another.
        """
        config = checked(cls, read_json(folder / "config.json"))
        if not (folder / "preprocessor_config.json").is_file():
            return config
        slicing = super().open(folder)
        for name in ("scale_resolution", "max_slice_nums", "slice_mode"):
            refuse_contradiction(name, getattr(config, name), getattr(slicing, name))
        return slicing


class MergedSlicing(Slicing):
    """The same of 4.6, where squares of patches become tokens: as many as a slice is large."""

    image_mean: Means = (0.5, 0.5, 0.5)
    image_std: Deviations = (0.5, 0.5, 0.5)
    downsample_mode: Literal["16x", "4x"] = "16x"

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: the file is missing or broken, or config.json merges otherwise.
        """
        slicing, config = super().open(folder), read_json(folder / "config.json")
        refuse_contradiction("downsample_mode", config.get("downsample_mode", "16x"), slicing.downsample_mode)
        return slicing

    @property
    def unit(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_size * (4 if self.downsample_mode == "16x" else 2)

    def tokens_of(self, part: Slice, queries: int) -> int:
        """Tokens that a slice becomes."""
        height, width, _ = part.shape
        return int(height * width // self.unit**2)

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.image_mean, self.image_std


class CanvasSlicing(MergedSlicing):
    """The same of 4.7, whose slices lie on one canvas."""

    tags: frozenset[int] = frozenset()  # tokens around slices, and the line feed between their rows

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it, and from config.json the tokens of the tags.

        Raises:
            CheckpointError: a file is missing or broken, or both contradict one another.
        """
        slicing, tags = super().open(folder), checked(_Tags, read_json(folder / "config.json"))
        return slicing.model_copy(update={"tags": frozenset(tags.model_dump().values())})

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Time, row and column of every token: int64 [3, length]."""
        grids = [(part.shape[0] // self.unit, part.shape[1] // self.unit) for part in inputs.slices]
        return canvas_positions(inputs.tokens, inputs.image_bounds.tolist(), grids, self.tags)


SLICINGS: Mapping[str, type[Slicing]] = {
    "queries": Slicing,
    "configured": ConfiguredSlicing,
    "merged": MergedSlicing,
    "canvas": CanvasSlicing,
}


class _Tags(Checked):
    image_start_id: NonNegativeInt
    image_end_id: NonNegativeInt
    slice_start_id: NonNegativeInt
    slice_end_id: NonNegativeInt
    newline_id: NonNegativeInt


def refuse_contradiction(name: str, config: object, preprocessor: object) -> None:
    """Refuse two files that do not say the same.

    Raises:
        CheckpointError: they do not.
    """
    if config != preprocessor:
        raise CheckpointError(f"config.json says {name} {config}, preprocessor_config.json says {preprocessor}")


def slice_image(image: Image.Image, slicing: Slicing) -> tuple[tuple[int, int] | None, tuple[Slice, ...]]:
    """The grid (columns, rows) or None, and the overview followed by the slices row by row, uint8 [height, width, 3].

    Source: adaptive visual encoding, section 3.1 of arXiv 2408.01800; bicubic on the 8-bit image, as published.
    """
    grid = choose_grid(image.width, image.height, slicing) if slicing.slice_mode else None
    overview = best_size(image.width, image.height, slicing, upscale=grid is None)
    whole = [_resized(image, *overview)]
    return grid, (*whole, *(_cells(image, grid, slicing) if grid else ()))


def choose_grid(width: int, height: int, slicing: Slicing) -> tuple[int, int] | None:
    """Columns and rows of about the image's own shape, one slice more or fewer than its area asks for; None for one."""
    wanted = min(math.ceil(width * height / slicing.scale_resolution**2), slicing.max_slice_nums)
    if wanted <= 1:
        return None
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= slicing.max_slice_nums]
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))


def best_size(width: float, height: float, slicing: Slicing, *, upscale: bool) -> tuple[int, int]:
    """Width and height in whole patches: the area of a slice if the image is larger, or if it may be enlarged."""
    side = slicing.scale_resolution
    if upscale or width * height > side**2:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _whole(width, slicing.unit), _whole(height, slicing.unit)


def _whole(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)


def _resized(image: Image.Image, width: int, height: int) -> Slice:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _cells(image: Image.Image, grid: tuple[int, int], slicing: Slicing) -> list[Slice]:
    columns, rows = grid
    refined = _whole(image.width, columns) / columns, _whole(image.height, rows) / rows
    width, height = best_size(*refined, slicing, upscale=True)
    whole = _resized(image, width * columns, height * rows)
    by_row = [np.hsplit(row, columns) for row in np.vsplit(whole, rows)]
    return [np.ascontiguousarray(cell) for row in by_row for cell in row]


def packed_pixels(part: Slice, mean: Sequence[float], std: Sequence[float], patch: int) -> NDArray[np.float32]:
    """Slice uint8 [height, width, 3] -> float32 [3, patch, patch * patches]: normalised, its patches side by side, row
    by row of patches, as NaViT packs them (arXiv 2307.06304)."""
    scaled = (part.astype(np.float32) / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    rows, columns = part.shape[0] // patch, part.shape[1] // patch
    patches = scaled.reshape(rows, patch, columns, patch, 3)
    return np.ascontiguousarray(patches.transpose(4, 1, 0, 2, 3).reshape(3, patch, -1))


def target_sizes(slices: Sequence[Slice], patch: int) -> NDArray[np.int64]:
    """Height and width of every slice in patches: int64 [slices, 2]."""
    return np.array([[part.shape[0] // patch, part.shape[1] // patch] for part in slices], dtype=np.int64)


def stretched(part: Slice, height: int, width: int) -> Slice:
    """A slice at another size in pixels: for engines that take no other."""
    return part if part.shape[:2] == (height, width) else _resized(Image.fromarray(part), width, height)
