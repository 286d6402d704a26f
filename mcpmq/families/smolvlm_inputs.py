"""Model inputs of SmolVLM: an image of any size as rows of tiles, followed by the whole image as one tile."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from mcpmq.compression_tables import ImagesTable
from mcpmq.errors import RecipeError
from mcpmq.families.config_schema import ConfigSchema
from mcpmq.families.family import VisionShape
from mcpmq.families.preprocessor import (
    KNOWN_STEPS,
    PROCESSOR_CONFIG,
    ChannelMeans,
    ChannelStds,
    check_consistent,
)
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tiled_inputs import Tile, TiledImage, TiledProcessor, TileSettings, split_tiles
from mcpmq.system.json_file import read_optional_json

AROUND_IMAGE, WHOLE_IMAGE = "<fake_token_around_image>", "<global-img>"
MAX_SIDE = 4096  # pixels; a constant of transformers


class _Edge(ConfigSchema):
    longest_edge: PositiveInt = Field(le=MAX_SIDE)


class SmolVlmTiling(TileSettings):
    """Settings of the image processor; defaults are those of transformers."""

    known_steps: ClassVar[frozenset[str]] = KNOWN_STEPS | {"do_image_splitting", "do_pad"}
    limit_names: ClassVar[frozenset[str]] = frozenset({"longest_edge"})
    image_processor_type: str = Field(
        default="SmolVLMImageProcessor", pattern=r"^(SmolVLM|Idefics3)ImageProcessor(Fast|Pil)?$"
    )
    resample: int = Field(default=int(Image.Resampling.LANCZOS), ge=0, le=5)
    image_mean: ChannelMeans = (0.5, 0.5, 0.5)
    image_std: ChannelStds = (0.5, 0.5, 0.5)
    size: _Edge = _Edge(longest_edge=1456)
    max_image_size: _Edge = _Edge(longest_edge=364)  # of a tile
    do_image_splitting: bool = True

    def limit_settings(self, limits: ImagesTable) -> dict[str, Any]:
        """Return the longest edge of a resized image.

        Raises:
            RecipeError: it is longer than that of transformers.
        """
        if (limits.longest_edge or 0) > MAX_SIDE:
            raise RecipeError(
                f"[images] has a `longest_edge` of {limits.longest_edge:,} pixels, transformers at most {MAX_SIDE:,}",
                f"give a multiple of {self.side}, the side of a tile",
            )
        return {"size": {"longest_edge": limits.longest_edge}}

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image, without its tags."""
        if not self.do_image_splitting:
            return num_queries
        whole = self._whole_tiles(*_size_with_longest_edge(width, height, self.size.longest_edge))
        tiles = math.prod(whole) // self.side**2
        return num_queries * (tiles + (tiles > 1))

    @property
    def side(self) -> int:
        """Side of a tile in pixels."""
        return self.max_image_size.longest_edge

    @property
    def slice_resolution(self) -> int:
        """Return the side of a tile."""
        return self.side

    def cut(self, image: Image.Image) -> TiledImage:
        """Resize an image to the longest edge, then to whole tiles, and cut it; the last tile is the whole image.

        Every step resizes the 8-bit result of the one before. Source: Idefics3, arXiv 2408.12637, and its processor.
        """
        resized = self._resized(image, *_size_with_longest_edge(image.width, image.height, self.size.longest_edge))
        if not self.do_image_splitting:
            return TiledImage((0, 0), (np.asarray(self._resized(resized, self.side, self.side)),))
        whole = self._resized(resized, *self._whole_tiles(resized.width, resized.height))
        rows, columns = whole.height // self.side, whole.width // self.side
        if (rows, columns) == (1, 1):
            return TiledImage((0, 0), (np.asarray(whole),))
        overview = np.asarray(self._resized(whole, self.side, self.side))
        return TiledImage((rows, columns), (*split_tiles(np.asarray(whole), rows, columns), overview))

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return Image.fromarray(self.resize_image(image, width, height))

    def _whole_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height as multiples of a tile: the longer side first, the other by the aspect ratio."""
        ratio = width / height
        if width >= height:
            width = self._round_up(width)
            return width, self._round_up(int(width / ratio))
        height = self._round_up(height)
        return self._round_up(int(height * ratio)), height

    def _round_up(self, length: int) -> int:
        return math.ceil(length / self.side) * self.side

    def image_text(self, grid: tuple[int, int], tokens: Sequence[str]) -> str:
        """Return the tags of an image with `tokens`, the image tokens of every tile."""
        (rows, columns), texts = grid, iter(tokens)
        lines = (
            "".join(f"{AROUND_IMAGE}<row_{row}_col_{column}>{next(texts)}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        )
        text = "".join(lines) + ("\n" if rows else "")
        return f"{text}{AROUND_IMAGE}{WHOLE_IMAGE}{tokens[-1]}{AROUND_IMAGE}"

    def pixel_values(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """Return float32 [1, tiles, 3, side, side]."""
        return np.stack([self.normalize(tile).transpose(2, 0, 1) for tile in tiles])[None]

    def graph_inputs(self, pixels: Tile) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one tile.

        `pixel_values` float32 [1, 1, 3, side, side]; `pixel_attention_mask` bool [1, 1, side, side], all true.
        """
        mask = np.ones((1, 1, self.side, self.side), np.bool_)
        return {"pixel_values": self.pixel_values([pixels]), "pixel_attention_mask": mask}

    def check_consistent(self, shape: VisionShape, checkpoint: Path) -> None:
        """Check the size of a tile, and the number of its tokens if a file has it.

        Raises:
            CheckpointError: they are not those of the vision encoder.
        """
        check_consistent("image_size", shape.slice_resolution, self.side)
        count = read_optional_json(checkpoint / PROCESSOR_CONFIG).get("image_seq_len", shape.num_queries)
        check_consistent("image_seq_len", shape.num_queries, count)


def _size_with_longest_edge(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the size of an image with a longest edge; an odd other edge is one pixel longer."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return longest, max(other + other % 2, 1)
    other = int(longest * ratio)
    return max(other + other % 2, 1), longest


def open_processor(checkpoint: Path, prompt_format: PromptFormat) -> TiledProcessor:
    """Open the processor of a checkpoint or an artifact."""
    tiling = SmolVlmTiling.open(checkpoint)
    return TiledProcessor.open_with(checkpoint, prompt_format, tiling, AROUND_IMAGE, WHOLE_IMAGE)


def open_vision_inputs(folder: Path, _: PromptFormat) -> SmolVlmTiling:
    """Open the settings of the image processor."""
    return SmolVlmTiling.open(folder)
