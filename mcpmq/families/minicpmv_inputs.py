"""How a picture, a question and an answer become what MiniCPM-V 2.6 is fed: slices, tokens, and where they meet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from tokenizers import Tokenizer

from mcpmq.errors import CalibrationError, CheckpointError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.family import Inputs
from mcpmq.json_file import read_json

END_OF_TURN = "<|im_end|>"
PLACEHOLDER = "<unk>"
TAGS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
OPENING, CLOSING = ("<image>", "<slice>"), ("</image>", "</slice>")
LARGEST_ASPECT = 200  # a sliver would be enlarged to a slice of any length
Channels = Annotated[tuple[float, ...], MinLen(3), MaxLen(3)]
Slice = NDArray[np.uint8]
Model = TypeVar("Model", bound=BaseModel)


class Slicing(BaseModel):
    """The part of preprocessor_config.json that decides the pixels."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    scale_resolution: PositiveInt = Field(default=448, le=4096)  # a slice has about this side squared
    max_slice_nums: PositiveInt = Field(default=9, le=64)
    patch_size: PositiveInt = Field(default=14, le=256)
    slice_mode: bool = True
    use_image_id: bool = True
    image_feature_size: PositiveInt | None = None
    norm_mean: Channels = (0.5, 0.5, 0.5)
    norm_std: Annotated[tuple[PositiveFloat, ...], MinLen(3), MaxLen(3)] = (0.5, 0.5, 0.5)


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")

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

    @classmethod
    def open(cls, checkpoint: Path) -> Self:
        """Read the text files of a checkpoint, or of anything written from it.

        Raises:
            CheckpointError: one is missing, broken, or contradicts another.
        """
        config = _validated(_Config, read_json(checkpoint / "config.json"), "config.json")
        slicing = _validated(Slicing, read_json(checkpoint / "preprocessor_config.json"), "preprocessor_config.json")
        _refuse_contradiction("patch_size", config.patch_size, slicing.patch_size)
        _refuse_contradiction("query_num", config.query_num, slicing.image_feature_size or config.query_num)
        tokenizer = _open_tokenizer(checkpoint / "tokenizer.json")
        template = ChatTemplate.open(checkpoint)
        special = _special_tokens(tokenizer, config.vocab_size)
        return cls(
            slicing, tokenizer, template, config.query_num, config.vocab_size, config.max_position_embeddings, special
        )

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """One sample as the model takes it; without an image the prompt stands alone.

        Raises:
            CalibrationError: the image cannot be read, the text holds special tokens, or it is too long.
            CheckpointError: the tokenizer yields tokens that the model does not have.
        """
        for text in (prompt, answer):
            self._refuse_special(sample_id, text)
        grid, slices = slice_image(_open_image(sample_id, image), self.slicing) if image else (None, ())
        content = f"{self.image_text(grid)}\n{prompt}" if slices else prompt
        question = self._tokens(self.template.render([{"role": "user", "content": content}]))
        tokens = np.array([*question, *self._tokens(answer + END_OF_TURN)], dtype=np.int64)
        self._check_range(sample_id, tokens)
        return Inputs(sample_id, tokens, len(question), slices, self._image_bounds(tokens, len(slices)))

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name: int64 token ids [1, tokens], and for an image float32 pixels
        [1, 3, patch, patch * patches], int64 target sizes [slices, 2] and int64 image bounds [slices, 2]."""
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        settings = self.slicing
        packed = [
            packed_pixels(part, settings.norm_mean, settings.norm_std, settings.patch_size) for part in inputs.slices
        ]
        return tokens | {
            "pixel_values": np.concatenate(packed, axis=-1)[None],
            "target_sizes": target_sizes(inputs.slices, settings.patch_size),
            "image_bound": inputs.image_bounds,
        }

    def image_text(self, grid: tuple[int, int] | None) -> str:
        """The overview's placeholders, then those of `grid` (columns, rows) slices, a line for every row."""
        placeholders = PLACEHOLDER * self.queries
        number = "<image_id>0</image_id>" if self.slicing.use_image_id else ""
        columns, rows = grid or (0, 0)
        row = f"<slice>{placeholders}</slice>" * columns
        return f"{number}<image>{placeholders}</image>" + "\n".join([row] * rows)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _refuse_special(self, sample_id: str, text: str) -> None:
        if found := [token for token in self.special if token in text]:
            raise CalibrationError(
                f"sample `{sample_id}` holds the special token `{found[0]}` in its text",
                "images are named by `image`, never written into the prompt; remove the token",
            )

    def _check_range(self, sample_id: str, tokens: NDArray[np.int64]) -> None:
        if tokens.max() >= self.vocabulary:
            raise CheckpointError(
                f"sample `{sample_id}`: the tokenizer gives token {tokens.max()}, the model has {self.vocabulary}",
                "tokenizer.json and config.json belong to different models",
            )
        if len(tokens) > self.context:
            raise CalibrationError(
                f"sample `{sample_id}` has {len(tokens)} tokens, more than the {self.context} of the model",
                "shorten it",
            )

    def _image_bounds(self, tokens: NDArray[np.int64], slices: int) -> NDArray[np.int64]:
        opened = np.flatnonzero(np.isin(tokens, [self.special[tag] for tag in OPENING])) + 1
        closed = np.flatnonzero(np.isin(tokens, [self.special[tag] for tag in CLOSING]))
        if len(opened) != slices or len(closed) != slices or np.any(closed - opened != self.queries):
            raise CheckpointError(
                f"the chat template keeps {len(opened)} of {slices} slices, each should hold {self.queries} tokens",
                "compare `chat_template` with the published one",
            )
        return np.stack([opened, closed], axis=1)


def _validated(model: type[Model], value: dict[str, Any], file: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"`{file}`: {where}: {first['msg']}", "compare it with the published one") from error


def _refuse_contradiction(name: str, config: int, preprocessor: int) -> None:
    if config != preprocessor:
        raise CheckpointError(f"config.json says {name} {config}, preprocessor_config.json says {preprocessor}")


def _open_tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise CheckpointError(f"no `{file.name}` in `{file.parent}`", "fetch the tokenizer's files too")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"`{file}` is no tokenizer: {error}", "fetch it again") from error


def _special_tokens(tokenizer: Tokenizer, vocabulary: int) -> dict[str, int]:
    needed = (*TAGS, PLACEHOLDER, END_OF_TURN)
    ids = {token: number for token in needed if (number := tokenizer.token_to_id(token)) is not None}
    if missing := [token for token in needed if ids.get(token, vocabulary) >= vocabulary]:
        raise CheckpointError(
            f"the tokenizer lacks `{missing[0]}`, or the model has no embedding for it",
            "compare with the published one",
        )
    added = tokenizer.get_added_tokens_decoder()
    return ids | {token.content: number for number, token in added.items() if token.special}


def _open_image(sample_id: str, path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            _refuse_sliver(sample_id, image)
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CalibrationError(f"sample `{sample_id}`: the image `{path.name}` cannot be read: {error}") from error


def _refuse_sliver(sample_id: str, image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if longer > LARGEST_ASPECT * shorter:
        raise CalibrationError(
            f"sample `{sample_id}`: the image is {image.width}x{image.height}, too long to be sliced",
            f"crop it: the longer side may be {LARGEST_ASPECT} times the shorter",
        )


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
    return _whole(width, slicing.patch_size), _whole(height, slicing.patch_size)


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


def stretched(part: Slice, size: tuple[int, int], patch: int) -> Slice:
    """A slice at another size, rows and columns of patches: for engines that take no other."""
    height, width = (patch * count for count in size)
    return part if part.shape[:2] == (height, width) else _resized(Image.fromarray(part), width, height)
