"""Adaptive slicing of MiniCPM-V: number and size of the slices, and packing of their pixels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.inputs import Inputs
from mcpmq.families.position_ids import canvas_position_ids
from mcpmq.families.preprocessor import (
    BICUBIC,
    RESCALE_FACTOR,
    ChannelMeans,
    ChannelStds,
    PreprocessorConfig,
    check_consistent,
    has_preprocessor,
)
from mcpmq.system.json_file import read_json

Slice = NDArray[np.uint8]


class Slicing(PreprocessorConfig):
    """Slicing and normalization settings of the image processor."""

    limit_names: ClassVar[frozenset[str]] = frozenset({"max_slice_nums"})
    applies_pixel_settings: ClassVar[bool] = False  # the published code of 2.0 to 4.5 ignores resample and do_rescale
    image_processor_type: str = Field(
        default="MiniCPMVImageProcessor", pattern=r"^MiniCPM\w*ImageProcessor(Fast|Pil)?$"
    )
    im_start: Literal["<image>"] = "<image>"
    im_end: Literal["</image>"] = "</image>"
    slice_start: Literal["<slice>"] = "<slice>"
    slice_end: Literal["</slice>"] = "</slice>"
    im_id_start: Literal["<image_id>"] = "<image_id>"
    im_id_end: Literal["</image_id>"] = "</image_id>"
    unk: Literal["<unk>"] = "<unk>"
    scale_resolution: PositiveInt = Field(default=448, le=4096)  # a slice has about the area of a square with this side
    max_slice_nums: PositiveInt = Field(default=9, le=64)
    slice_mode: bool = True
    use_image_id: bool = True
    image_feature_size: PositiveInt | None = None
    norm_mean: ChannelMeans = (0.5, 0.5, 0.5)
    norm_std: ChannelStds = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _check_pixel_settings(self) -> Self:
        given = self.resample, self.do_rescale, self.rescale_factor, self.do_normalize
        if not self.applies_pixel_settings and given != (BICUBIC, True, RESCALE_FACTOR, True):
            raise ValueError("`resample`, `do_rescale`, `rescale_factor` and `do_normalize` do not apply to this model")
        return self

    @property
    def slice_resolution(self) -> int:
        """Return `scale_resolution`."""
        return self.scale_resolution

    @property
    def size_factor(self) -> int:
        """Divisor of the sides of a slice, in pixels."""
        return self.patch_size

    def num_tokens(self, pixels: Slice, num_queries: int) -> int:
        """Return the number of image tokens of a slice: one per resampler query."""
        return num_queries

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image, without its tags."""
        grid, sizes = slice_sizes(width, height, self)
        blank = [np.broadcast_to(np.uint8(0), (rows, columns, 3)) for columns, rows in sizes]
        counts = [self.num_tokens(one, num_queries) for one in blank]
        return counts[0] + (grid[0] * grid[1] * counts[1] if grid else 0)

    def graph_inputs(self, pixels: Slice) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one slice.

        `pixel_values` float32 [1, 3, patch, patch * patches]; `tgt_sizes` int64 [1, 2], rows and columns of patches.
        """
        return {"pixel_values": self.pack_slices([pixels])[None], "tgt_sizes": target_sizes([pixels], self.patch_size)}

    def pack_slices(self, slices: Sequence[Slice]) -> NDArray[np.float32]:
        """Concatenate the patches of all slices: float32 [3, patch, patch * patches]."""
        mean, std = self.enabled_mean_and_std
        packed = [pack_patches(part, mean, std, self.patch_size, self.scale) for part in slices]
        return np.concatenate(packed, axis=-1)

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `norm_mean` and `norm_std`."""
        return self.norm_mean, self.norm_std

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return 0, 1, 2, ...: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


class ConfiguredSlicing(Slicing):
    """Slicing of 2.0, with the settings in config.json; those of the image processor are optional."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the settings of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is invalid, or the two files contradict each other.
        """
        config = validate_config(cls, read_json(folder / "config.json"))
        if not has_preprocessor(folder):
            return config
        slicing = super().open(folder)
        for name in ("scale_resolution", "max_slice_nums", "slice_mode"):
            check_consistent(name, getattr(config, name), getattr(slicing, name))
        return slicing


class MergedSlicing(Slicing):
    """Slicing of 4.6, where the number of image tokens is proportional to the area of a slice."""

    applies_pixel_settings: ClassVar[bool] = True
    image_mean: ChannelMeans = (0.5, 0.5, 0.5)
    image_std: ChannelStds = (0.5, 0.5, 0.5)
    downsample_mode: Literal["16x", "4x"] = "16x"

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the settings of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid, or the two files contradict each other.
        """
        slicing, config = super().open(folder), read_json(folder / "config.json")
        check_consistent("downsample_mode", config.get("downsample_mode", "16x"), slicing.downsample_mode)
        return slicing

    @property
    def size_factor(self) -> int:
        """Side in pixels of the square that becomes one image token."""
        return self.patch_size * (4 if self.downsample_mode == "16x" else 2)

    def num_tokens(self, pixels: Slice, num_queries: int) -> int:
        """Return the number of image tokens of a slice."""
        height, width, _ = pixels.shape
        return int(height * width // self.size_factor**2)

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `image_mean` and `image_std`."""
        return self.image_mean, self.image_std


class _TagIds(ConfigSchema):
    image_start_id: NonNegativeInt
    image_end_id: NonNegativeInt
    slice_start_id: NonNegativeInt
    slice_end_id: NonNegativeInt
    newline_id: NonNegativeInt


class CanvasSlicing(MergedSlicing):
    """Slicing of 4.7, with position ids on one canvas for all slices."""

    tag_ids: frozenset[int] = frozenset()  # ids of the image and slice tags, and of the newline between rows of slices

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the settings, and the tag ids from config.json.

        Raises:
            CheckpointError: a file is missing or invalid, or the two files contradict each other.
        """
        slicing, tags = super().open(folder), validate_config(_TagIds, read_json(folder / "config.json"))
        return slicing.model_copy(update={"tag_ids": frozenset(tags.model_dump().values())})

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Compute time, row and column of each token: int64 [3, length]."""
        grids = [(part.shape[0] // self.size_factor, part.shape[1] // self.size_factor) for part in inputs.slices]
        bounds = inputs.image_bounds.tolist()
        return canvas_position_ids(inputs.tokens, bounds, grids, self.tag_ids, inputs.slices_per_image)


SLICING_TYPES: Mapping[str, type[Slicing]] = {
    "queries": Slicing,
    "configured": ConfiguredSlicing,
    "merged": MergedSlicing,
    "canvas": CanvasSlicing,
}


def slice_image(image: Image.Image, slicing: Slicing) -> tuple[tuple[int, int] | None, tuple[Slice, ...]]:
    """Slice an image; return the grid and the slices.

    The grid is (columns, rows), or None for an image without slices. The slices are uint8 [height, width, 3]: first the
    overview, then the slices row by row. The 8-bit image is resized, as in the published code.
    Source: adaptive visual encoding, section 3.1 of arXiv 2408.01800.
    """
    grid, (overview, *sizes) = slice_sizes(image.width, image.height, slicing)
    cells = _cut(image, grid, sizes[0], slicing) if grid else ()
    return grid, (slicing.resize_image(image, *overview), *cells)


def slice_sizes(width: int, height: int, slicing: Slicing) -> tuple[tuple[int, int] | None, list[tuple[int, int]]]:
    """Return the grid of an image, and the width and height of the overview and, with a grid, of every slice."""
    grid = choose_grid(width, height, slicing) if slicing.slice_mode else None
    overview = best_size(width, height, slicing, upscale=grid is None)
    if grid is None:
        return None, [overview]
    columns, rows = grid
    refined = _round_to_multiple(width, columns) / columns, _round_to_multiple(height, rows) / rows
    return grid, [overview, best_size(*refined, slicing, upscale=True)]


def choose_grid(width: int, height: int, slicing: Slicing) -> tuple[int, int] | None:
    """Choose columns and rows with about the aspect ratio of the image; None for one slice.

    The number of slices differs by at most one from the image area divided by the slice area.
    """
    ideal = min(math.ceil(width * height / slicing.scale_resolution**2), slicing.max_slice_nums)
    if ideal <= 1:
        return None
    counts = [count for count in (ideal - 1, ideal, ideal + 1) if 1 < count <= slicing.max_slice_nums]
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))


def best_size(width: float, height: float, slicing: Slicing, *, upscale: bool) -> tuple[int, int]:
    """Compute width and height as multiples of `size_factor`.

    Images larger than a slice are reduced to about its area; with `upscale`, smaller images are enlarged to it.
    """
    side = slicing.scale_resolution
    if upscale or width * height > side**2:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _round_to_multiple(width, slicing.size_factor), _round_to_multiple(height, slicing.size_factor)


def _round_to_multiple(length: float, factor: int) -> int:
    return max(round(length / factor) * factor, factor)


def _cut(image: Image.Image, grid: tuple[int, int], size: tuple[int, int], slicing: Slicing) -> list[Slice]:
    (columns, rows), (width, height) = grid, size
    whole = slicing.resize_image(image, width * columns, height * rows)
    by_row = [np.hsplit(row, columns) for row in np.vsplit(whole, rows)]
    return [np.ascontiguousarray(cell) for row in by_row for cell in row]


def pack_patches(
    pixels: Slice, mean: Sequence[float], std: Sequence[float], patch_size: int, scale: float = RESCALE_FACTOR
) -> NDArray[np.float32]:
    """Rescale and normalize a slice and pack its patches row by row.

    `pixels` are uint8 [height, width, 3], the result is float32 [3, patch, patch * patches].
    Source: patch packing of NaViT, arXiv 2307.06304.
    """
    rescaled = pixels.astype(np.float32) / np.float32(1 / scale)
    scaled = (rescaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    patches = scaled.reshape(rows, patch_size, columns, patch_size, 3)
    return np.ascontiguousarray(patches.transpose(4, 1, 0, 2, 3).reshape(3, patch_size, -1))


def target_sizes(slices: Sequence[Slice], patch_size: int) -> NDArray[np.int64]:
    """Return rows and columns of patches of each slice: int64 [slices, 2]."""
    return np.array([[part.shape[0] // patch_size, part.shape[1] // patch_size] for part in slices], dtype=np.int64)


def resize_slice(pixels: Slice, height: int, width: int) -> Slice:
    """Resize a slice bicubically, for engines with a fixed input size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
