"""Resizing of images in Qwen-VL, and the patches of images and frames."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, model_validator

from mcpmq.compression_tables import ImagesTable
from mcpmq.errors import RecipeError
from mcpmq.families.config_schema import ConfigSchema
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.families.position_ids import mrope_position_ids
from mcpmq.families.preprocessor import ChannelMeans, ChannelStds, PreprocessorConfig

ImagePixels = NDArray[np.uint8]


class PixelBounds(ConfigSchema):
    shortest_edge: PositiveInt  # despite the names, these are areas in pixels
    longest_edge: PositiveInt


DEFAULT_SIZE = PixelBounds(shortest_edge=56 * 56, longest_edge=28 * 28 * 1280)


class Resizing(PreprocessorConfig):
    """Resizing and normalization settings of the image processor."""

    limit_names: ClassVar[frozenset[str]] = frozenset({"min_pixels", "max_pixels"})
    default_size: ClassVar[PixelBounds] = DEFAULT_SIZE
    merges_bounds: ClassVar[bool] = True

    image_processor_type: str = Field(default="Qwen2VLImageProcessor", pattern=r"^Qwen\w*ImageProcessor(Fast|Pil)?$")
    merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)
    image_mean: ChannelMeans = (0.48145466, 0.4578275, 0.40821073)
    image_std: ChannelStds = (0.26862954, 0.26130258, 0.27577711)
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    size: PixelBounds = DEFAULT_SIZE

    @model_validator(mode="before")
    @classmethod
    def _merge_bounds(cls, settings: Any) -> Any:
        """As in transformers, `min_pixels` and `max_pixels` take precedence over `size`."""
        size = settings.get("size", cls.default_size.model_dump()) if isinstance(settings, Mapping) else None
        if not isinstance(size, Mapping) or not cls.merges_bounds:
            return settings
        bounds = {"shortest_edge": settings.get("min_pixels"), "longest_edge": settings.get("max_pixels")}
        return {**settings, "size": {**size, **{key: value for key, value in bounds.items() if value is not None}}}

    def limit_settings(self, limits: ImagesTable) -> dict[str, Any]:
        """Return the bounds in `size`, and by the names of older versions of transformers.

        Raises:
            RecipeError: no area is within the bounds.
        """
        smallest = limits.min_pixels or self.size.shortest_edge
        largest = limits.max_pixels or self.size.longest_edge
        if not max(smallest, self.size_factor**2) <= largest:
            raise RecipeError(
                f"[images] has images of at most {largest:,} and at least {smallest:,} pixels, and"
                f" {self.size_factor**2:,} pixels are one token",
                "give a larger `max_pixels`, or a smaller `min_pixels`",
            )
        bounds = {"shortest_edge": smallest, "longest_edge": largest}
        return {"size": bounds, "min_pixels": smallest, "max_pixels": largest}

    def image_tokens(self, width: int, height: int, _: int) -> int:
        """Return the number of tokens of an image, without its tags."""
        return math.prod(self.best_size(width, height)) // self.size_factor**2

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `image_mean` and `image_std`."""
        return self.image_mean, self.image_std

    @property
    def size_factor(self) -> int:
        """Side in pixels of the square that becomes one image token."""
        return self.patch_size * self.merge_size

    def token_grid(self, pixels: ImagePixels) -> tuple[int, int]:
        """Return the rows and columns of the tokens of a slice."""
        height, width = slice_size(pixels)
        return height // self.size_factor, width // self.size_factor

    def graph_inputs(self, pixels: ImagePixels) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one image, or for the frames of one temporal patch.

        `pixel_values` float32 [patches, 3 * frames * patch * patch]; `grid_thw` int64 [1, 3], number of temporal
        patches, rows and columns of patches.
        """
        rows, columns = (side * self.merge_size for side in self.token_grid(pixels))
        return {"pixel_values": self._patches(pixels), "grid_thw": np.array([[1, rows, columns]], np.int64)}

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Compute time, row and column of each token: int64 [3, length]."""
        grids = map(self.token_grid, inputs.slices)
        return mrope_position_ids(len(inputs.tokens), inputs.image_bounds.tolist(), grids, inputs.slice_times)

    def resize(self, image: Image.Image) -> ImagePixels:
        """Resize an image to the size of `best_size`: uint8 [height, width, 3]."""
        return self.resize_image(image, *self.best_size(image.width, image.height))

    def best_size(self, width: int, height: int) -> tuple[int, int]:
        """Compute width and height: multiples of `size_factor`, area within the bounds, nearly the aspect ratio."""
        smallest, largest = self.size.shortest_edge, self.size.longest_edge
        sides = [round(side / self.size_factor) * self.size_factor for side in (width, height)]
        if math.prod(sides) > largest:
            shrink = math.sqrt(width * height / largest)
            sides = [
                max(math.floor(side / shrink / self.size_factor), 1) * self.size_factor for side in (width, height)
            ]
        elif math.prod(sides) < smallest:
            grow = math.sqrt(smallest / (width * height))
            sides = [math.ceil(side * grow / self.size_factor) * self.size_factor for side in (width, height)]
        return sides[0], sides[1]

    def _patches(self, part: ImagePixels) -> NDArray[np.float32]:
        """Return normalized patches grouped by image token; an image is repeated for all frames."""
        frames = part if part.ndim == 4 else np.broadcast_to(part, (self.temporal_patch_size, *part.shape))
        pixels = self.normalize(frames)
        (rows, columns), merge, patch = self.token_grid(part), self.merge_size, self.patch_size
        split = pixels.reshape(len(frames), rows, merge, patch, columns, merge, patch, 3)
        grouped = split.transpose(1, 4, 2, 5, 7, 0, 3, 6)
        return np.ascontiguousarray(grouped.reshape(rows * columns * merge**2, -1))
