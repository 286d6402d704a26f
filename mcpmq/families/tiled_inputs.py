"""Model inputs of families that cut an image into tiles of one size, all with the same number of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.chat_processor import ChatProcessor, check_video
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import VisionShape
from mcpmq.families.inputs import Inputs
from mcpmq.families.preprocessor import (
    PROCESSOR_CONFIG,
    ChannelMeans,
    ChannelStds,
    PreprocessorConfig,
    check_consistent,
)
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import open_tokenizer
from mcpmq.families.video_frames import VideoFrames
from mcpmq.system.json_file import read_json, read_optional_json

Tile = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TiledImage:
    """The tiles of an image in the order of their tokens, uint8 RGB [side, side, 3] each."""

    grid: tuple[int, int]  # rows and columns; (0, 0) for an image that is one tile
    tiles: tuple[Tile, ...]


class Tiling(Protocol):
    """The tiles and tags of images, by the settings of an image processor."""

    def cut(self, image: Image.Image) -> TiledImage:
        """Resize an image and cut it into tiles."""

    def image_text(self, grid: tuple[int, int], tokens: Sequence[str]) -> str:
        """Return the tags of an image with `tokens`, the image tokens of every tile."""

    def pixel_values(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """Return the argument of the torch module's forward for all tiles of a prompt."""

    def check_consistent(self, shape: VisionShape, checkpoint: Path) -> None:
        """Check that the settings are those of the vision encoder.

        Raises:
            CheckpointError: they are not.
        """


def closest_grid(width: int, height: int, side: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return the columns and rows of tiles with the aspect ratio next to that of an image, within limits of tiles.

    A grid with more tiles replaces an equally good one if the image has more than half of its area. Source: dynamic
    resolution, section 3.1 of arXiv 2404.16821, and the image processors.
    """
    (least, most), counts = limits, range(1, limits[1] + 1)
    grids = [(columns, rows) for columns in counts for rows in counts]
    allowed = [grid for grid in grids if least <= grid[0] * grid[1] <= most]
    best, smallest = (1, 1), float("inf")
    for columns, rows in sorted(allowed, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        is_large = width * height > 0.5 * side**2 * columns * rows
        if difference < smallest or (difference == smallest and is_large):
            best, smallest = (columns, rows), difference
    return best


def split_tiles(pixels: Tile, rows: int, columns: int) -> list[Tile]:
    """Return the tiles of an image row by row."""
    cells = [cell for row in np.vsplit(pixels, rows) for cell in np.hsplit(row, columns)]
    return [np.ascontiguousarray(cell) for cell in cells]


class TileSize(ConfigSchema):
    """Height and width of a tile in pixels."""

    height: PositiveInt = Field(le=4096)
    width: PositiveInt = Field(le=4096)

    def check(self, side: int) -> None:
        """Check that a tile is a square with this side.

        Raises:
            CheckpointError: it is not.
        """
        for length in (self.height, self.width):
            check_consistent("image_size", side, length)


class TileSettings(PreprocessorConfig):
    """Settings that image processors with tiles share."""

    image_mean: ChannelMeans
    image_std: ChannelStds

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `image_mean` and `image_std`."""
        return self.image_mean, self.image_std

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return 0, 1, 2, ...: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


class SquareTileSettings(TileSettings):
    """Settings of image processors whose tiles are squares of a fixed size."""

    tokens_key: ClassVar[str] = "image_seq_length"  # of config.json, for the number of tokens of a tile
    size: TileSize  # of a tile

    @property
    def slice_resolution(self) -> int:
        """Return the side of a tile in pixels."""
        return self.size.width

    def pixel_values(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """Return float32 [tiles, 3, side, side]."""
        return np.stack([self.normalize(tile).transpose(2, 0, 1) for tile in tiles])

    def graph_inputs(self, pixels: Tile) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one tile: `pixel_values`."""
        return {"pixel_values": self.pixel_values([pixels])}

    def check_consistent(self, shape: VisionShape, checkpoint: Path) -> None:
        """Check the size of a tile, and the number of its tokens if a file has it.

        Raises:
            CheckpointError: they are not those of the vision encoder.
        """
        self.size.check(shape.slice_resolution)
        count = read_optional_json(checkpoint / PROCESSOR_CONFIG).get("image_seq_length", shape.num_queries)
        check_consistent(self.tokens_key, shape.num_queries, count)


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 2048


@dataclass(frozen=True, slots=True)
class TiledProcessor(ChatProcessor):
    """Encodes samples with the tokenizer, chat template and image processor settings of a checkpoint."""

    tiling: Tiling
    tokens_per_tile: int

    @classmethod
    def open_with(cls, checkpoint: Path, prompt_format: PromptFormat, tiling: Tiling, *tags: str) -> Self:
        """Open the text files of a checkpoint or an artifact; the tokenizer must have the tags.

        Raises:
            CheckpointError: a file is missing or invalid, or two files contradict each other.
        """
        raw = read_json(checkpoint / "config.json")
        shape = family_of(raw).parse_architecture(raw).required_vision
        tiling.check_consistent(shape, checkpoint)
        config = validate_config(_Config, {**raw, **(raw.get("text_config") or {})})
        required = prompt_format.image_token, prompt_format.end_of_turn, *tags
        tokenizer, special = open_tokenizer(checkpoint, required, config.vocab_size)
        limits = config.vocab_size, config.max_position_embeddings
        template = ChatTemplate.open(checkpoint)
        return cls(tokenizer, template, *limits, special, prompt_format, tiling, shape.num_queries)

    def prompt_media(self, label: str, count: int, has_video: bool) -> "TiledImages":
        """Return the images of a new prompt, of any number.

        Raises:
            DatasetError: the prompt has a video.
        """
        check_video(label, has_video, self.prompt_format)
        return TiledImages(self)

    def num_tokens(self, tile: Tile) -> int:
        """Return the number of image tokens of a tile."""
        return self.tokens_per_tile

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module: `input_ids` int64 [1, tokens], and `pixel_values`."""
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        return tokens | ({"pixel_values": self.tiling.pixel_values(inputs.slices)} if inputs.slices else {})


@dataclass(frozen=True, slots=True)
class TiledImages:
    """The tiles of the images of one prompt."""

    processor: TiledProcessor
    slices: list[Tile] = field(default_factory=list)
    slices_per_image: list[int] = field(default_factory=list)
    frame_intervals: Sequence[float] = ()
    slice_times: Sequence[int] = ()

    def text(self, image: Image.Image) -> str:
        """Cut an image into tiles, and return the tags with its tokens."""
        cut = self.processor.tiling.cut(image)
        self.slices.extend(cut.tiles)
        self.slices_per_image.append(len(cut.tiles))
        token = self.processor.prompt_format.image_token
        return self.processor.tiling.image_text(cut.grid, [token * self.processor.num_tokens(one) for one in cut.tiles])

    def video_text(self, video: VideoFrames) -> NoReturn:
        """Raise an error: prompts with a video are rejected before."""
        raise AssertionError("the prompt has no video")

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every tile: int64 [tiles, 2].

        Raises:
            CheckpointError: the prompt has another number of image tokens.
        """
        counts = [self.processor.num_tokens(tile) for tile in self.slices]
        found = self._image_tokens(tokens, sum(counts))
        spans = [
            (found[end - count], found[end - 1] + 1) for end, count in zip(accumulate(counts), counts, strict=True)
        ]
        return np.array(spans, np.int64).reshape(-1, 2)

    def _image_tokens(self, tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        special: Mapping[str, int] = self.processor.special_tokens
        found = np.flatnonzero(tokens == special[self.processor.prompt_format.image_token])
        if len(found) != count:
            raise CheckpointError(
                f"the rendered prompt has {len(found)} image tokens instead of {count}",
                "compare `chat_template` with the published template",
            )
        return found
