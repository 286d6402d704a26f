"""Tables of structured compression in a recipe."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class VocabularyTable(BaseModel):
    """The tokens of a byte-level BPE vocabulary that a trimmed model keeps: those of all keys together.

    languages: codes such as `en` and `zh`: tokens that can be part of a text in the letters of the language.
    scripts: names such as `Latin` and `Han`, likewise.
    corpus: paths or patterns of text files, and `calibration` for the calibration set: tokens that occur in them.
    min_count: the number of occurrences in the corpus from which a token is kept.
    max_tokens: the largest number of tokens: those of the corpus, from the most frequent one, then from the lowest id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    languages: list[str] = []
    scripts: list[str] = []
    corpus: list[str] = []
    min_count: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if not (self.languages or self.scripts or self.corpus or self.max_tokens):
            raise ValueError("give at least one of: languages, scripts, corpus, max_tokens")
        return self


class ImagesTable(BaseModel):
    """Limits of the tokens of an image, with the names of image processors; one that is not given is the original's.

    max_slice_nums: the largest number of slices of an image (MiniCPM-V), or of tiles (`max_patches` of InternVL).
    min_pixels, max_pixels: the bounds of the area of a resized image (Qwen-VL).
    longest_edge: the longer side of a resized image in pixels (SmolVLM).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_slice_nums: int | None = Field(default=None, ge=1, le=64)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    longest_edge: int | None = Field(default=None, ge=1)

    @property
    def given(self) -> dict[str, int]:
        """The limits that are given."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if not self.given:
            raise ValueError(f"give at least one of: {', '.join(type(self).model_fields)}")
        return self

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,}" for name, value in self.given.items())


LayerName = Annotated[str, Field(pattern=r"^(language|vision)\.layers\.\d{1,3}$")]


class LayersTable(BaseModel):
    """The layers that a model does not have, with the cost of their removal: a table that `mcpmq layers` writes.

    remove: common names of layers of the original.
    influence: 1 - cosine of the input and the output of each of them, a mean over tokens.
    kl_divergence: mean KLD in nats between the original and the original without all of them, per answer token.
    answer_tokens: their number.
    calibration: name and SHA-256 of the set of the measurement.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    remove: Annotated[tuple[LayerName, ...], Field(min_length=1)]
    influence: tuple[Annotated[float, Field(ge=0)], ...]
    kl_divergence: Annotated[float, Field(ge=0)]
    answer_tokens: Annotated[int, Field(ge=1)]
    calibration: str

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if len({*self.remove}) != len(self.remove) or len(self.influence) != len(self.remove):
            raise ValueError(
                f"{len(self.remove)} layers to remove have {len(self.influence)} influences: `mcpmq layers` writes both"
            )
        return self

    def __str__(self) -> str:
        return (
            f"without {', '.join(self.remove)}; mean KLD {self.kl_divergence:.4f} nats on {self.answer_tokens:,} tokens"
        )


@dataclass(frozen=True, slots=True)
class Compression:
    """Tables of structured compression, and settings of speech, audio and the embedding, instead of a recipe's own."""

    vocabulary: VocabularyTable | None = None
    images: ImagesTable | None = None
    layers: LayersTable | None = None
    speech_output: Literal["drop"] | None = None
    gguf_audio: Literal["glma"] | None = None
    onnx_embedding: Literal["shared"] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The tables and settings that are given, by name."""
        return {one.name: table for one in fields(self) if (table := getattr(self, one.name)) is not None}


NO_COMPRESSION = Compression()
