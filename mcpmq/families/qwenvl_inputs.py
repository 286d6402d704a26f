"""Model inputs of Qwen-VL: one image of any size, and tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, model_validator

from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.chat_processor import ChatProcessor
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import VisionShape
from mcpmq.families.inputs import Inputs
from mcpmq.families.position_ids import mrope_position_ids
from mcpmq.families.preprocessor import ChannelMeans, ChannelStds, PreprocessorConfig, check_consistent
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import open_tokenizer
from mcpmq.system.json_file import read_json

ImagePixels = NDArray[np.uint8]


class _Size(ConfigSchema):
    shortest_edge: PositiveInt  # despite the names, these are areas in pixels
    longest_edge: PositiveInt


DEFAULT_SIZE = _Size(shortest_edge=56 * 56, longest_edge=28 * 28 * 1280)


class Resizing(PreprocessorConfig):
    """Resizing and normalization settings of the image processor."""

    image_processor_type: str = Field(default="Qwen2VLImageProcessor", pattern=r"^Qwen\w*ImageProcessor(Fast|Pil)?$")
    merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)
    image_mean: ChannelMeans = (0.48145466, 0.4578275, 0.40821073)
    image_std: ChannelStds = (0.26862954, 0.26130258, 0.27577711)
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    size: _Size = DEFAULT_SIZE

    @model_validator(mode="before")
    @classmethod
    def _merge_bounds(cls, settings: Any) -> Any:
        """As in transformers, `min_pixels` and `max_pixels` take precedence over `size`."""
        size = settings.get("size", DEFAULT_SIZE.model_dump()) if isinstance(settings, Mapping) else None
        if not isinstance(size, Mapping):
            return settings
        bounds = {"shortest_edge": settings.get("min_pixels"), "longest_edge": settings.get("max_pixels")}
        return {**settings, "size": {**size, **{key: value for key, value in bounds.items() if value is not None}}}

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `image_mean` and `image_std`."""
        return self.image_mean, self.image_std

    @property
    def size_factor(self) -> int:
        """Side in pixels of the square that becomes one image token."""
        return self.patch_size * self.merge_size

    def token_grid(self, pixels: ImagePixels) -> tuple[int, int]:
        """Return the rows and columns of image tokens."""
        return pixels.shape[0] // self.size_factor, pixels.shape[1] // self.size_factor

    def graph_inputs(self, pixels: ImagePixels) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one image.

        `pixel_values` float32 [patches, 3 * frames * patch * patch]; `grid_thw` int64 [1, 3], frames, rows and columns
        of patches.
        """
        rows, columns = (side * self.merge_size for side in self.token_grid(pixels))
        return {"pixel_values": self._patches(pixels), "grid_thw": np.array([[1, rows, columns]], np.int64)}

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Compute time, row and column of each token: int64 [3, length]."""
        return mrope_position_ids(len(inputs.tokens), inputs.image_bounds.tolist(), map(self.token_grid, inputs.slices))

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
        """Return normalized patches grouped by image token, each repeated for all frames."""
        pixels = self.normalize(part)
        (rows, columns), merge, patch = self.token_grid(part), self.merge_size, self.patch_size
        split = pixels.reshape(rows, merge, patch, columns, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        frames = np.repeat(split[:, :, :, :, :, None], self.temporal_patch_size, axis=5)
        return np.ascontiguousarray(frames.reshape(rows * columns * merge**2, -1))


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768


@dataclass(frozen=True, slots=True)
class QwenVlProcessor(ChatProcessor):
    """Encodes samples with the tokenizer, chat template and preprocessor settings of a checkpoint."""

    resizing: Resizing
    audio_encoding: AudioEncoding | None = None

    @classmethod
    def open(cls, checkpoint: Path, prompt_format: PromptFormat) -> Self:
        """Open the text files of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid.
        """
        raw = read_json(checkpoint / "config.json")
        config = validate_config(_Config, cls.language_config(raw))
        needed = (*prompt_format.vision_tags, prompt_format.image_token, prompt_format.end_of_turn)
        tokenizer, special = open_tokenizer(checkpoint, (*needed, *prompt_format.audio_tokens), config.vocab_size)
        template = ChatTemplate.open(checkpoint, default_tokens=prompt_format.default_special_tokens)
        resizing = Resizing.open(checkpoint)
        architecture = family_of(raw).parse_architecture(raw)
        _check_vision(architecture.required_vision, resizing)
        audio = AudioEncoding.open(checkpoint, architecture.audio) if architecture.audio else None
        limits = config.vocab_size, config.max_position_embeddings
        return cls(tokenizer, template, *limits, special, prompt_format, resizing, audio)

    @staticmethod
    def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a raw config.json that describes the language model."""
        return {**config, **(config.get("text_config") or {})}

    def prompt_images(self, label: str, count: int) -> "ResizedImages":
        """Return the images of a new prompt, of any number."""
        return ResizedImages(self)

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        `input_ids` int64 [1, tokens]; with images `pixel_values` and `image_grid_thw`, those of
        `Resizing.graph_inputs` for all images, and `mm_token_type_ids` int32 [1, tokens], 1 for image tokens.
        """
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        images = [self.resizing.graph_inputs(pixels) for pixels in inputs.slices]
        return tokens | {
            "pixel_values": np.concatenate([image["pixel_values"] for image in images]),
            "image_grid_thw": np.concatenate([image["grid_thw"] for image in images]),
            "mm_token_type_ids": (tokens["input_ids"] == self.special_tokens[self.prompt_format.image_token]).astype(
                np.int32
            ),
        }


@dataclass(frozen=True, slots=True)
class ResizedImages:
    """The resized images of one prompt; each is one slice."""

    processor: QwenVlProcessor
    slices: list[ImagePixels] = field(default_factory=list)

    @property
    def slices_per_image(self) -> list[int]:
        """One slice for each image."""
        return [1] * len(self.slices)

    def text(self, image: Image.Image) -> str:
        """Resize an image, and return the tags with its tokens."""
        self.slices.append(self.processor.resizing.resize(image))
        rows, columns = self.processor.resizing.token_grid(self.slices[-1])
        begin, end = self.processor.prompt_format.vision_tags
        return f"{begin}{self.processor.prompt_format.image_token * (rows * columns)}{end}"

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every image: int64 [images, 2].

        Raises:
            CheckpointError: the prompt has another number of images.
        """
        begin, end = (self.processor.special_tokens[tag] for tag in self.processor.prompt_format.vision_tags)
        starts, ends = np.flatnonzero(tokens == begin) + 1, np.flatnonzero(tokens == end)
        if not len(starts) == len(ends) == len(self.slices):
            raise CheckpointError(
                f"the rendered prompt has {len(starts)} of {len(self.slices)} images",
                "compare `chat_template` with the published template",
            )
        return np.stack([starts, ends], axis=1)


def _check_vision(shape: VisionShape, resizing: Resizing) -> None:
    """Check that the patches of the image processor are those of the vision encoder."""
    check_consistent("patch_size", shape.patch_size, resizing.patch_size)
    check_consistent("spatial_merge_size", shape.spatial_merge_size, resizing.merge_size)
    check_consistent("temporal_patch_size", shape.temporal_patch_size, resizing.temporal_patch_size)


open_processor = QwenVlProcessor.open


def open_vision_inputs(folder: Path, _: PromptFormat) -> Resizing:
    """Open the resizing settings."""
    return Resizing.open(folder)
