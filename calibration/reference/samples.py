"""From scenes and texts to padded batches of tokens, labels and image slices."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from calibration import prose, scenes
from calibration.reference.tokenizer import END_OF_TEXT, SYSTEM, TURN_END, TURN_START, UNKNOWN

SLICE = 112
QUERIES = 16
IGNORED = -100
CONTENT = f"<image>{UNKNOWN * QUERIES}</image>"
PART = f"<slice>{UNKNOWN * QUERIES}</slice>"


@dataclass(frozen=True)
class Example:
    """One conversation: what is asked (image part included), what is answered, what is shown.

    Training asks `more` about the same picture, each question as if it were the only one.
    """

    prompt: str
    answer: str
    slices: tuple[Image.Image, ...] = ()
    learn_after: str | None = None
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """One encoded example, all int of equal length; `branch` is 0 in what all questions share, then 1, 2, ..."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    branch: list[int]


@dataclass(frozen=True)
class Batch:
    """ids, labels, positions int64 [samples, tokens], right-padded; pixels float32 [slices, 3, 112, 112] or None.

    visible is bool [samples, 1, tokens, tokens], or None where plain causal order will do.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    pixels: Tensor | None
    visible: Tensor | None


def cut(image: Image.Image) -> tuple[Image.Image, ...]:
    """The slices of a square picture: itself, or an overview and its quarters row by row."""
    if image.width == SLICE:
        return (image,)
    corners = [(x, y) for y in (0, SLICE) for x in (0, SLICE)]
    quarters = [image.crop((x, y, x + SLICE, y + SLICE)) for x, y in corners]
    return (image.resize((SLICE, SLICE), Image.Resampling.BICUBIC), *quarters)


def image_part(slices: Sequence[Image.Image]) -> str:
    """The tokens that stand for a picture of one slice or of an overview and two rows of two."""
    rows = "\n".join([PART * 2] * 2) if len(slices) > 1 else ""
    return f"<image_id>0</image_id>{CONTENT}{rows}\n"


def image_example(image: Image.Image, question: str, answer: str) -> Example:
    """A question about a picture."""
    slices = cut(image)
    return Example(image_part(slices) + question, answer, slices)


def text_example(rng: random.Random) -> Example:
    """A question without a picture, or a text to continue; of the latter the beginning is learned as well."""
    if rng.random() < 0.35:
        return Example(*prose.question(rng))
    return Example(*prose.continuation(rng), learn_after=prose.CONTINUE)


def conversation(example: Example) -> tuple[str, str]:
    """Everything up to the answer, and the answer with its end."""
    before = f"{TURN_START}system\n{SYSTEM}{TURN_END}\n{TURN_START}user\n{example.prompt}{TURN_END}\n"
    return f"{before}{TURN_START}assistant\n", f"{example.answer}{TURN_END}"


def encode(tokenizer: Tokenizer, example: Example) -> Row:
    """Tokens of one conversation; only what is to be learned has a label."""
    before, answer = conversation(example)
    asked = tokenizer.encode(before).ids
    answered = tokenizer.encode(answer).ids
    labels = [IGNORED] * len(asked)
    if example.learn_after:
        known = len(tokenizer.encode(before[: before.index(example.learn_after) + len(example.learn_after)]).ids)
        labels[known:] = asked[known:]
    length = len(asked) + len(answered)
    row = Row(asked + answered, labels + answered, list(range(length)), [0] * length)
    return with_more(tokenizer, example, row) if example.more else row


def with_more(tokenizer: Tokenizer, example: Example, row: Row) -> Row:
    """The row with further questions after it, each at the positions that the first one has."""
    shared = row.ids.index(tokenizer.token_to_id(TURN_START), 3) + 3 + image_length(example)
    row = Row(row.ids, row.labels, row.positions, [0] * shared + [1] * (len(row.ids) - shared))
    for number, (question, answer) in enumerate(example.more, start=2):
        before, after = f"{question}{TURN_END}\n{TURN_START}assistant\n", f"{answer}{TURN_END}"
        asked, answered = tokenizer.encode(before).ids, tokenizer.encode(after).ids
        length = len(asked) + len(answered)
        row = Row(
            row.ids + asked + answered,
            row.labels + [IGNORED] * len(asked) + answered,
            row.positions + list(range(shared, shared + length)),
            row.branch + [number] * length,
        )
    return row


def image_length(example: Example) -> int:
    """Tokens of the image part: its number, every slice with its two marks, and line ends."""
    slices = len(example.slices)
    return 3 + slices * (QUERIES + 2) + (1 if slices == 1 else 2)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of equal size as float32 [images, 3, height, width] between -1 and 1."""
    stacked = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    """int64 [rows, longest], filled on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def visibility(branch: Tensor) -> Tensor:
    """Who may look at whom, bool [samples, 1, tokens, tokens]: backwards, at what is shared and at one's own branch."""
    shared, own = branch[:, None, :] == 0, branch[:, None, :] == branch[:, :, None]
    return ((shared | own).tril())[:, None]


def collate(tokenizer: Tokenizer, examples: Sequence[Example]) -> Batch:
    """A batch, padded on the right, where a causal model never looks."""
    rows = [encode(tokenizer, example) for example in examples]
    branched = any(example.more for example in examples)
    shown = [part for example in examples for part in example.slices]
    return Batch(
        ids=padded([row.ids for row in rows], tokenizer.token_to_id(END_OF_TEXT)),
        labels=padded([row.labels for row in rows], IGNORED),
        positions=padded([row.positions for row in rows], 0),
        pixels=pixels(shown) if shown else None,
        visible=visibility(padded([row.branch for row in rows], -1)) if branched else None,
    )


def draw_single(rng: random.Random, count: int) -> list[scenes.Scene]:
    """Pictures of one slice."""
    return [scenes.single_scene(rng, SLICE) for _ in range(count)]


def scene_batch(
    tokenizer: Tokenizer, drawn: Sequence[scenes.Scene], rng: random.Random | None = None, questions: int = 1
) -> Batch:
    """A batch about pictures that all have the same number of slices; further questions come from `rng`."""
    examples = []
    for scene in drawn:
        more = tuple(scene.ask(rng) for _ in range(questions - 1)) if rng else ()
        examples.append(replace(image_example(scene.image, scene.question, scene.answer), more=more))
    return collate(tokenizer, examples)


def draw_sliced(rng: random.Random, count: int) -> list[scenes.Scene]:
    """Pictures that need their slices."""
    return [scenes.sliced_scene(rng, SLICE) for _ in range(count)]


def text_batch(tokenizer: Tokenizer, rng: random.Random, count: int) -> Batch:
    """A batch without pictures."""
    return collate(tokenizer, [text_example(rng) for _ in range(count)])
