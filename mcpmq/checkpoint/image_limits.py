"""The image limits of a model, and the tokens of images of some sizes with and without them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mcpmq.compression_tables import ImagesTable

Side = Annotated[int, Field(gt=0, le=1 << 16)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class ImageTokens(BaseModel):
    """The image tokens of an image, without tags, and the bytes of their keys and values in f16."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Side  # pixels
    height: Side
    tokens: Count
    original_tokens: Count  # with the limits of the original
    kv_cache_nbytes: Count

    def __str__(self) -> str:
        size = f"{self.width:,} x {self.height:,} pixels"
        before = "" if self.tokens == self.original_tokens else f" instead of {self.original_tokens:,}"
        return f"an image of {size}: {self.tokens:,}{before} tokens, {self.kv_cache_nbytes / 1e6:,.2f} MB of KV cache"


class ImageLimits(BaseModel):
    """The limits of an [images] table, and their effect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: ImagesTable
    images: tuple[ImageTokens, ...]

    def __str__(self) -> str:
        return str(self.limits)
