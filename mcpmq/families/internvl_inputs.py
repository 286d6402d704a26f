"""Model inputs of InternVL: an image as a grid of tiles with about its aspect ratio, followed by a thumbnail."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field, PositiveInt

from mcpmq.compression_tables import ImagesTable
from mcpmq.families.preprocessor import ChannelMeans, ChannelStds
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tiled_inputs import (
    SquareTileSettings,
    TiledImage,
    TiledProcessor,
    TileSize,
    closest_grid,
    split_tiles,
)

IMAGE_START, IMAGE_END = "<img>", "</img>"


class InternVlTiling(SquareTileSettings):
    """Settings of the image processor; defaults are those of transformers."""

    limit_names: ClassVar[frozenset[str]] = frozenset({"max_slice_nums"})
    image_processor_type: str = Field(default="GotOcr2ImageProcessor", pattern=r"^GotOcr2ImageProcessor(Fast|Pil)?$")
    image_mean: ChannelMeans = (0.48145466, 0.4578275, 0.40821073)
    image_std: ChannelStds = (0.26862954, 0.26130258, 0.27577711)
    size: TileSize = TileSize(height=384, width=384)  # of a tile
    crop_to_patches: bool = False
    min_patches: PositiveInt = Field(default=1, le=64)
    max_patches: PositiveInt = Field(default=12, le=64)

    def limit_settings(self, limits: ImagesTable) -> dict[str, Any]:
        """Return the largest number of tiles, and the smallest one if that was larger."""
        most = limits.max_slice_nums or self.max_patches
        return {"max_patches": most, "min_patches": min(self.min_patches, most)}

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image, without its tags."""
        tiles = math.prod(self.grid(width, height))
        return num_queries * (tiles + (tiles > 1))

    def cut(self, image: Image.Image) -> TiledImage:
        """Resize an image to a grid of tiles and cut it; of several tiles, the last is a thumbnail of the image."""
        columns, rows = self.grid(image.width, image.height)
        thumbnail = self.resize_image(image, self.slice_resolution, self.slice_resolution)
        if rows * columns == 1:
            return TiledImage((0, 0), (thumbnail,))
        whole = self.resize_image(image, self.slice_resolution * columns, self.slice_resolution * rows)
        return TiledImage((rows, columns), (*split_tiles(whole, rows, columns), thumbnail))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return the columns and rows with the aspect ratio next to that of an image."""
        if not self.crop_to_patches or self.max_patches <= 1:
            return 1, 1
        return closest_grid(width, height, self.slice_resolution, (self.min_patches, self.max_patches))

    def image_text(self, _: tuple[int, int], tokens: Sequence[str]) -> str:
        """Return the tags of an image around `tokens`, the image tokens of every tile."""
        return f"{IMAGE_START}{''.join(tokens)}{IMAGE_END}"


def open_processor(checkpoint: Path, prompt_format: PromptFormat) -> TiledProcessor:
    """Open the processor of a checkpoint or an artifact."""
    tiling = InternVlTiling.open(checkpoint)
    return TiledProcessor.open_with(checkpoint, prompt_format, tiling, IMAGE_START, IMAGE_END)


def open_vision_inputs(folder: Path, _: PromptFormat) -> InternVlTiling:
    """Open the settings of the image processor."""
    return InternVlTiling.open(folder)
