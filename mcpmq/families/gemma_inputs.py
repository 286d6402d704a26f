"""Model inputs of Gemma 3: an image of any size is resized to a square, with the same number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from mcpmq.families.inputs import Inputs
from mcpmq.families.preprocessor import ChannelMeans, ChannelStds
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tiled_inputs import SquareTileSettings, TiledImage, TiledProcessor, TileSize

IMAGE_START, IMAGE_END = "<start_of_image>", "<end_of_image>"


class GemmaResizing(SquareTileSettings):
    """Settings of the image processor; defaults are those of transformers."""

    tokens_key: ClassVar[str] = "mm_tokens_per_image"
    image_processor_type: str = Field(default="Gemma3ImageProcessor", pattern=r"^Gemma3ImageProcessor(Fast|Pil)?$")
    resample: int = Field(default=int(Image.Resampling.BILINEAR), ge=0, le=5)
    image_mean: ChannelMeans = (0.5, 0.5, 0.5)
    image_std: ChannelStds = (0.5, 0.5, 0.5)
    size: TileSize = TileSize(height=224, width=224)

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image, the same for all sizes."""
        return num_queries

    def cut(self, image: Image.Image) -> TiledImage:
        """Resize an image to one square."""
        return TiledImage((0, 0), (self.resize_image(image, self.size.width, self.size.height),))

    def image_text(self, _: tuple[int, int], tokens: Sequence[str]) -> str:
        """Return the tags and line feeds around `tokens`, the image tokens."""
        return f"\n\n{IMAGE_START}{''.join(tokens)}{IMAGE_END}\n\n"


@dataclass(frozen=True, slots=True)
class GemmaProcessor(TiledProcessor):
    """Encodes samples; the tokens of an image attend to one another, so the model needs their places."""

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        `input_ids` int64 [1, tokens], `token_type_ids` int64 [1, tokens], 1 for image tokens, and `pixel_values`.
        """
        return TiledProcessor.model_inputs(self, inputs) | {"token_type_ids": inputs.image_flags[None]}


def open_processor(checkpoint: Path, prompt_format: PromptFormat) -> GemmaProcessor:
    """Open the processor of a checkpoint or an artifact."""
    resizing = GemmaResizing.open(checkpoint)
    return GemmaProcessor.open_with(checkpoint, prompt_format, resizing, IMAGE_START, IMAGE_END)


def open_vision_inputs(folder: Path, _: PromptFormat) -> GemmaResizing:
    """Open the settings of the image processor."""
    return GemmaResizing.open(folder)
