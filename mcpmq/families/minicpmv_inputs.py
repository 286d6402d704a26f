"""How a picture, a question and an answer become what a MiniCPM-V is fed: slices, tokens, and where they meet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers import Tokenizer

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.checked import Checked, checked
from mcpmq.families.family import Inputs
from mcpmq.families.pictures import open_image
from mcpmq.families.positions import canvas_positions
from mcpmq.families.text import check_range, open_tokenizer, refuse_special
from mcpmq.json_file import read_json

TAGS, NUMBER_TAGS = ("<image>", "</image>", "<slice>", "</slice>"), ("<image_id>", "</image_id>")
Channels = Annotated[tuple[float, ...], MinLen(3), MaxLen(3)]
Slice = NDArray[np.uint8]


class Slicing(Checked):
    """The part of preprocessor_config.json that decides the pixels."""

    scale_resolution: PositiveInt = Field(default=448, le=4096)  # a slice has about this side squared
    max_slice_nums: PositiveInt = Field(default=9, le=64)
    patch_size: PositiveInt = Field(default=14, le=256)
    slice_mode: bool = True
    use_image_id: bool = True
    image_feature_size: PositiveInt | None = None
    norm_mean: Channels = (0.5, 0.5, 0.5)
    norm_std: Annotated[tuple[PositiveFloat, ...], MinLen(3), MaxLen(3)] = (0.5, 0.5, 0.5)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: the file is missing or broken.
        """
        return checked(cls, read_json(folder / "preprocessor_config.json"), "preprocessor_config.json")

    @property
    def unit(self) -> int:
        """What the sides of a slice are multiples of, in pixels."""
        return self.patch_size

    def tokens_of(self, part: Slice, queries: int) -> int:
        """Tokens that a slice becomes: as many as the resampler has queries."""
        return queries

    def graph_inputs(self, part: Slice) -> dict[str, NDArray[Any]]:
        """One slice for the vision graph: float32 [1, 3, patch, patch * patches], and its size in patches."""
        return {"pixel_values": self.packed([part])[None], "tgt_sizes": target_sizes([part], self.patch_size)}

    def packed(self, slices: Sequence[Slice]) -> NDArray[np.float32]:
        """All slices side by side: float32 [3, patch, patch * patches]."""
        mean, std = self._normalisation()
        return np.concatenate([packed_pixels(part, mean, std, self.patch_size) for part in slices], axis=-1)

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.norm_mean, self.norm_std

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Tokens stand one after the other, whatever they are of: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


class MergedSlicing(Slicing):
    """The same of 4.6, where squares of patches become tokens: as many as a slice is large."""

    image_mean: Channels = (0.5, 0.5, 0.5)
    image_std: Annotated[tuple[PositiveFloat, ...], MinLen(3), MaxLen(3)] = (0.5, 0.5, 0.5)
    downsample_mode: Literal["16x", "4x"] = "16x"

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: the file is missing or broken, or config.json merges otherwise.
        """
        slicing, config = super().open(folder), read_json(folder / "config.json")
        _refuse_contradiction("downsample_mode", config.get("downsample_mode", "16x"), slicing.downsample_mode)
        return slicing

    @property
    def unit(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_size * (4 if self.downsample_mode == "16x" else 2)

    def tokens_of(self, part: Slice, queries: int) -> int:
        """Tokens that a slice becomes."""
        height, width, _ = part.shape
        return int(height * width // self.unit**2)

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.image_mean, self.image_std


class CanvasSlicing(MergedSlicing):
    """The same of 4.7, whose slices lie on one canvas."""

    tags: frozenset[int] = frozenset()  # tokens around slices, and the line feed between their rows

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it, and from config.json the tokens of the tags.

        Raises:
            CheckpointError: a file is missing or broken, or both contradict one another.
        """
        slicing, tags = super().open(folder), checked(_Tags, read_json(folder / "config.json"))
        return slicing.model_copy(update={"tags": frozenset(tags.model_dump().values())})

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Time, row and column of every token: int64 [3, length]."""
        grids = [(part.shape[0] // self.unit, part.shape[1] // self.unit) for part in inputs.slices]
        return canvas_positions(inputs.tokens, inputs.image_bounds.tolist(), grids, self.tags)


class _Tags(Checked):
    image_start_id: NonNegativeInt
    image_end_id: NonNegativeInt
    slice_start_id: NonNegativeInt
    slice_end_id: NonNegativeInt
    newline_id: NonNegativeInt


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands around slices, and what ends a turn."""

    end_of_turn: str = "<|im_end|>"
    numbered: bool = True  # an image begins with its number
    placeholder: str = "<unk>"  # of a token of an image
    slicing: type[Slicing] = Slicing
    extra: Literal["bounds", "types", "none"] = "bounds"  # how the native module learns which tokens are of images
    slices_as_images: bool = False  # a slice has the tags of an image; one pair of `<slice>` is around all of them

    @property
    def opening(self) -> tuple[str, ...]:
        return ("<image>",) if self.slices_as_images else ("<image>", "<slice>")

    @property
    def needed(self) -> tuple[str, ...]:
        return (*TAGS, *(NUMBER_TAGS if self.numbered else ()), self.placeholder, self.end_of_turn)


PUBLISHED_SINCE_2_6 = Layout()


class _Config(Checked):
    vocab_size: PositiveInt
    query_num: PositiveInt = Field(default=64, le=4096)
    max_position_embeddings: PositiveInt = 32768
    patch_size: PositiveInt = 14


@dataclass(frozen=True, slots=True)
class MiniCpmVProcessor:
    """Reads a checkpoint's own tokenizer, chat template and preprocessor settings; makes inputs of samples."""

    slicing: Slicing
    tokenizer: Tokenizer
    template: ChatTemplate
    queries: int  # image tokens a slice becomes
    vocabulary: int
    context: int
    special: Mapping[str, int]  # what no prompt may hold, with its token id
    layout: Layout = PUBLISHED_SINCE_2_6

    @classmethod
    def open(cls, checkpoint: Path, layout: Layout = PUBLISHED_SINCE_2_6) -> Self:
        """Read the text files of a checkpoint, or of anything written from it.

        Raises:
            CheckpointError: one is missing, broken, or contradicts another.
        """
        raw, slicing = read_json(checkpoint / "config.json"), layout.slicing.open(checkpoint)
        config = checked(_Config, {**raw, **(raw.get("text_config") or {})})
        _refuse_contradiction("patch_size", config.patch_size, slicing.patch_size)
        _refuse_contradiction("query_num", config.query_num, slicing.image_feature_size or config.query_num)
        tokenizer, special = open_tokenizer(checkpoint, layout.needed, config.vocab_size)
        return cls(
            slicing,
            tokenizer,
            ChatTemplate.open(checkpoint),
            config.query_num,
            config.vocab_size,
            config.max_position_embeddings,
            special,
            layout,
        )

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """One sample as the model takes it; without an image the prompt stands alone.

        Raises:
            CalibrationError: the image cannot be read, the text holds special tokens, or it is too long.
            CheckpointError: the tokenizer yields tokens that the model does not have.
        """
        refuse_special(sample_id, self.special, prompt, answer)
        grid, slices = slice_image(open_image(sample_id, image), self.slicing) if image else (None, ())
        counts = [self.slicing.tokens_of(part, self.queries) for part in slices]
        content = f"{self.image_text(grid, counts)}\n{prompt}" if slices else prompt
        question = self._tokens(self.template.render([{"role": "user", "content": content}]))
        tokens = np.array([*question, *self._tokens(answer + self.layout.end_of_turn)], dtype=np.int64)
        check_range(sample_id, tokens, self.vocabulary, self.context)
        return Inputs(sample_id, tokens, len(question), slices, self._image_bounds(tokens, counts))

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name: int64 token ids [1, tokens], and for an image float32 pixels
        [1, 3, patch, patch * patches], int64 target sizes [slices, 2] and int64 image bounds [slices, 2]."""
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        images: dict[str, NDArray[Any]] = {
            "pixel_values": self.slicing.packed(inputs.slices)[None],
            "target_sizes": target_sizes(inputs.slices, self.slicing.patch_size),
        }
        if self.layout.extra == "bounds":
            images["image_bound"] = inputs.image_bounds
        elif self.layout.extra == "types":
            of_image = tokens["input_ids"] == self.special[self.layout.placeholder]
            images["mm_token_type_ids"] = of_image.astype(np.int32)
        return tokens | images

    def image_text(self, grid: tuple[int, int] | None, counts: Sequence[int]) -> str:
        """Placeholders for the `counts` tokens of the overview, and of `grid` (columns, rows) slices row by row."""
        overview, *parts = (self.layout.placeholder * count for count in counts)
        columns, _ = grid or (1, 0)
        if self.layout.slices_as_images:
            slices = _lines([f"<image>{part}</image>" for part in parts], columns)
            return f"<image>{overview}</image>" + (f"<slice>{slices}</slice>" if grid else "")
        number = "<image_id>0</image_id>" if self.layout.numbered and self.slicing.use_image_id else ""
        return f"{number}<image>{overview}</image>" + _lines([f"<slice>{part}</slice>" for part in parts], columns)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _image_bounds(self, tokens: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
        opened = np.flatnonzero(np.isin(tokens, [self.special[tag] for tag in self.layout.opening])) + 1
        closings = [self.special[tag.replace("<", "</")] for tag in self.layout.opening]
        closed = np.flatnonzero(np.isin(tokens, closings))
        if len(opened) != len(closed) or (closed - opened).tolist() != list(counts):
            raise CheckpointError(
                f"the chat template keeps {len(opened)} of {len(counts)} slices, of {list(counts)} tokens",
                "compare `chat_template` with the published one",
            )
        return np.stack([opened, closed], axis=1)


def _lines(parts: Sequence[str], columns: int) -> str:
    return "\n".join("".join(parts[start : start + columns]) for start in range(0, len(parts), columns))


def _refuse_contradiction(name: str, config: object, preprocessor: object) -> None:
    if config != preprocessor:
        raise CheckpointError(f"config.json says {name} {config}, preprocessor_config.json says {preprocessor}")


def slice_image(image: Image.Image, slicing: Slicing) -> tuple[tuple[int, int] | None, tuple[Slice, ...]]:
    """The grid (columns, rows) or None, and the overview followed by the slices row by row, uint8 [height, width, 3].

    Source: adaptive visual encoding, section 3.1 of arXiv 2408.01800; bicubic on the 8-bit image, as published.
    """
    grid = choose_grid(image.width, image.height, slicing) if slicing.slice_mode else None
    overview = best_size(image.width, image.height, slicing, upscale=grid is None)
    whole = [_resized(image, *overview)]
    return grid, (*whole, *(_cells(image, grid, slicing) if grid else ()))


def choose_grid(width: int, height: int, slicing: Slicing) -> tuple[int, int] | None:
    """Columns and rows of about the image's own shape, one slice more or fewer than its area asks for; None for one."""
    wanted = min(math.ceil(width * height / slicing.scale_resolution**2), slicing.max_slice_nums)
    if wanted <= 1:
        return None
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= slicing.max_slice_nums]
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))


def best_size(width: float, height: float, slicing: Slicing, *, upscale: bool) -> tuple[int, int]:
    """Width and height in whole patches: the area of a slice if the image is larger, or if it may be enlarged."""
    side = slicing.scale_resolution
    if upscale or width * height > side**2:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _whole(width, slicing.unit), _whole(height, slicing.unit)


def _whole(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)


def _resized(image: Image.Image, width: int, height: int) -> Slice:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _cells(image: Image.Image, grid: tuple[int, int], slicing: Slicing) -> list[Slice]:
    columns, rows = grid
    refined = _whole(image.width, columns) / columns, _whole(image.height, rows) / rows
    width, height = best_size(*refined, slicing, upscale=True)
    whole = _resized(image, width * columns, height * rows)
    by_row = [np.hsplit(row, columns) for row in np.vsplit(whole, rows)]
    return [np.ascontiguousarray(cell) for row in by_row for cell in row]


def packed_pixels(part: Slice, mean: Sequence[float], std: Sequence[float], patch: int) -> NDArray[np.float32]:
    """Slice uint8 [height, width, 3] -> float32 [3, patch, patch * patches]: normalised, its patches side by side, row
    by row of patches, as NaViT packs them (arXiv 2307.06304)."""
    scaled = (part.astype(np.float32) / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    rows, columns = part.shape[0] // patch, part.shape[1] // patch
    patches = scaled.reshape(rows, patch, columns, patch, 3)
    return np.ascontiguousarray(patches.transpose(4, 1, 0, 2, 3).reshape(3, patch, -1))


def target_sizes(slices: Sequence[Slice], patch: int) -> NDArray[np.int64]:
    """Height and width of every slice in patches: int64 [slices, 2]."""
    return np.array([[part.shape[0] // patch, part.shape[1] // patch] for part in slices], dtype=np.int64)
