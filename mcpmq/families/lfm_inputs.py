"""Model inputs of LFM2-VL: small images in about their size, large ones as tiles and a thumbnail."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.compression_tables import ImagesTable
from mcpmq.errors import CheckpointError
from mcpmq.families.family import VisionShape
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.families.preprocessor import KNOWN_STEPS, ChannelMeans, ChannelStds, check_consistent
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tiled_inputs import (
    Tile,
    TiledImage,
    TiledProcessor,
    TileSettings,
    closest_grid,
    split_tiles,
)

IMAGE_START, IMAGE_END, THUMBNAIL = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"


class LfmTiling(TileSettings):
    """Settings of the image processor; defaults are those of transformers."""

    known_steps: ClassVar[frozenset[str]] = KNOWN_STEPS | {"do_image_splitting", "do_pad"}
    limit_names: ClassVar[frozenset[str]] = frozenset({"max_slice_nums"})
    image_processor_type: str = Field(default="Lfm2VlImageProcessor", pattern=r"^Lfm2VlImageProcessor(Fast)?$")
    resample: int = Field(default=int(Image.Resampling.BILINEAR), ge=0, le=5)
    image_mean: ChannelMeans = (0.5, 0.5, 0.5)
    image_std: ChannelStds = (0.5, 0.5, 0.5)
    downsample_factor: PositiveInt = Field(default=2, le=16)
    encoder_patch_size: PositiveInt = Field(default=16, le=256)
    tile_size: PositiveInt = Field(default=512, le=4096)
    min_image_tokens: PositiveInt = 64
    max_image_tokens: PositiveInt = 256
    min_tiles: PositiveInt = Field(default=2, le=64)
    max_tiles: PositiveInt = Field(default=10, le=64)
    max_pixels_tolerance: PositiveFloat = 2.0
    do_image_splitting: bool = True
    use_thumbnail: bool = True

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.encoder_patch_size * self.downsample_factor

    @property
    def slice_resolution(self) -> int:
        """Return the side of a tile."""
        return self.tile_size

    def cut(self, image: Image.Image) -> TiledImage:
        """Resize an image within the limits of tokens; cut a large one into tiles, which a thumbnail follows."""
        whole = self.resize_image(image, *self.resized(image.width, image.height))
        if not self._is_large(image.width, image.height) or not self._splits:
            return TiledImage((0, 0), (whole,))
        columns, rows = self.grid(image.width, image.height)
        resized = self.resize_image(image, columns * self.tile_size, rows * self.tile_size)
        tiles = split_tiles(resized, rows, columns)
        has_thumbnail = self.use_thumbnail and rows * columns > 1
        return TiledImage((rows, columns), (*tiles, *((whole,) if has_thumbnail else ())))

    @property
    def _splits(self) -> bool:
        return self.do_image_splitting and not self.min_tiles == self.max_tiles == 1

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height in whole tokens, within the limits, with about the aspect ratio of an image.

        Source: section 2.1 of arXiv 2409.12191, and the image processor.
        """
        least, most = (tokens * self.token_side**2 for tokens in (self.min_image_tokens, self.max_image_tokens))
        new_width, new_height = (self._at_least_one(round(length / self.token_side)) for length in (width, height))
        if new_width * new_height > most:
            factor = math.sqrt(height * width / most)
            lengths = (math.floor(length / factor / self.token_side) for length in (width, height))
            new_width, new_height = map(self._at_least_one, lengths)
        elif new_width * new_height < least:
            factor = math.sqrt(least / (height * width))
            new_width, new_height = (
                math.ceil(length * factor / self.token_side) * self.token_side for length in (width, height)
            )
        return new_width, new_height

    def _at_least_one(self, tokens: int) -> int:
        return max(tokens, 1) * self.token_side

    def _is_large(self, width: int, height: int) -> bool:
        side = self.token_side
        rounded = [max(self.encoder_patch_size, round(length / side) * side) for length in (width, height)]
        return math.prod(rounded) > self.max_image_tokens * side**2 * self.max_pixels_tolerance

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return the columns and rows with the aspect ratio next to that of an image."""
        return closest_grid(width, height, self.tile_size, (self.min_tiles, self.max_tiles))

    def num_tokens(self, tile: Tile) -> int:
        """Return the number of tokens of a slice; a square at the edge may be incomplete."""
        rows, columns = self.patch_grid(tile)
        return -(-rows // self.downsample_factor) * -(-columns // self.downsample_factor)

    def image_tokens(self, width: int, height: int, _: int) -> int:
        """Return the number of tokens of an image, without its tags."""
        whole = math.prod(self.resized(width, height)) // self.token_side**2
        if not self._is_large(width, height) or not self._splits:
            return whole
        tiles = math.prod(self.grid(width, height))
        per_tile = (self.tile_size // self.token_side) ** 2
        return tiles * per_tile + whole * (self.use_thumbnail and tiles > 1)

    def limit_settings(self, limits: ImagesTable) -> dict[str, Any]:
        """Return the largest number of tiles, and the smallest one if that was larger."""
        most = limits.max_slice_nums or self.max_tiles
        return {"max_tiles": most, "min_tiles": min(self.min_tiles, most)}

    def image_text(self, grid: tuple[int, int], tokens: Sequence[str]) -> str:
        """Return the tags of an image, and `tokens`, the image tokens of every slice."""
        rows, columns = grid
        tags = [f"<|img_row_{row}_col_{column}|>" for row in range(1, rows + 1) for column in range(1, columns + 1)]
        if len(tags) <= 1:
            tags = [""]
        tags = [*tags, *([THUMBNAIL] if len(tokens) > len(tags) else [])]
        parts = "".join(tag + text for tag, text in zip(tags, tokens, strict=True))
        return f"{IMAGE_START}{parts}{IMAGE_END}"

    def patches(self, tile: Tile) -> NDArray[np.float32]:
        """Return the values of the patches of a slice, by row, column and channel: float32 [patches, values]."""
        side, (height, width, _) = self.encoder_patch_size, tile.shape
        split = self.normalize(tile).reshape(height // side, side, width // side, side, 3)
        return split.transpose(0, 2, 1, 3, 4).reshape(-1, side * side * 3)

    def patch_grid(self, tile: Tile) -> tuple[int, int]:
        """Return rows and columns of patches of a slice."""
        height, width = slice_size(tile)
        return height // self.encoder_patch_size, width // self.encoder_patch_size

    def vision_arguments(self, tiles: Sequence[Tile]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision encoder for all slices of a prompt, padded to the longest.

        `pixel_values` float32 [slices, patches, values], `pixel_attention_mask` int32 [slices, patches], 0 for padding,
        and `spatial_shapes` int64 [slices, 2], rows and columns of patches.
        """
        patches = [self.patches(tile) for tile in tiles]
        longest = max(map(len, patches))
        padded = [np.pad(one, ((0, longest - len(one)), (0, 0))) for one in patches]
        mask = np.stack([np.arange(longest) < len(one) for one in patches]).astype(np.int32)
        grids = np.array([self.patch_grid(tile) for tile in tiles], np.int64)
        return {"pixel_values": np.stack(padded), "pixel_attention_mask": mask, "spatial_shapes": grids}

    def graph_inputs(self, pixels: Tile) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one slice, as `vision_arguments`."""
        return self.vision_arguments([pixels])

    def pixel_values(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """Return the patches of all slices, padded to the longest: float32 [slices, patches, values]."""
        return self.vision_arguments(tiles)["pixel_values"]

    def check_consistent(self, shape: VisionShape, checkpoint: Path) -> None:
        """Check the sizes of patches and tokens.

        Raises:
            CheckpointError: they are not those of the vision encoder, or a tile has no whole number of tokens.
        """
        check_consistent("patch_size", shape.patch_size, self.encoder_patch_size)
        check_consistent("downsample_factor", shape.spatial_merge_size, self.downsample_factor)
        if self.tile_size % self.token_side:
            raise CheckpointError(
                f"tiles have {self.tile_size} pixels (`tile_size`), not a multiple of the {self.token_side} of a token",
                "compare the settings of the image processor with the published file",
            )


@dataclass(frozen=True, slots=True)
class LfmProcessor(TiledProcessor):
    """Encodes samples with slices of different sizes."""

    def num_tokens(self, tile: Tile) -> int:
        """Return the number of image tokens of a slice."""
        assert isinstance(self.tiling, LfmTiling)
        return self.tiling.num_tokens(tile)

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module: `input_ids` int64 [1, tokens], and those of slices."""
        assert isinstance(self.tiling, LfmTiling)
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        return tokens | (self.tiling.vision_arguments(inputs.slices) if inputs.slices else {})


def open_processor(checkpoint: Path, prompt_format: PromptFormat) -> LfmProcessor:
    """Open the processor of a checkpoint or an artifact."""
    tiling = LfmTiling.open(checkpoint)
    return LfmProcessor.open_with(checkpoint, prompt_format, tiling, IMAGE_START, IMAGE_END, THUMBNAIL)


def open_vision_inputs(folder: Path, _: PromptFormat) -> LfmTiling:
    """Open the settings of the image processor."""
    return LfmTiling.open(folder)
