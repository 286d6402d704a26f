"""Padded batches of tokens, labels and image slices from scenes and texts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from calibration import prose, scenes
from calibration.reference.tokenizer import END_OF_TEXT, SYSTEM_PROMPT, TURN_END, TURN_START, UNKNOWN, token_id

SLICE = 112
QUERIES = 16
IGNORED_LABEL = -100
OVERVIEW_TOKENS = f"<image>{UNKNOWN * QUERIES}</image>"
SLICE_TOKENS = f"<slice>{UNKNOWN * QUERIES}</slice>"


@dataclass(frozen=True)
class Example:
    """One conversation: prompt with image tokens, answer, slices.

    Training adds `more_questions` about the same image; each is computed as if it were the only question.
    """

    prompt: str
    answer: str
    slices: tuple[Image.Image, ...] = ()
    learn_after: str | None = None
    more_questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EncodedExample:
    """One encoded example, all lists of equal length; `branch` is 0 for shared tokens and then counts the questions."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    branch: list[int]


@dataclass(frozen=True)
class Batch:
    """ids, labels, positions int64 [samples, tokens], right-padded; pixels float32 [slices, 3, 112, 112] or None.

    attention_mask is bool [samples, 1, tokens, tokens], or None for a causal mask.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    pixels: Tensor | None
    attention_mask: Tensor | None


def cut_slices(image: Image.Image) -> tuple[Image.Image, ...]:
    """Return the slices of a square image: the image, or an overview and its quarters row by row."""
    if image.width == SLICE:
        return (image,)
    corners = [(x, y) for y in (0, SLICE) for x in (0, SLICE)]
    quarters = [image.crop((x, y, x + SLICE, y + SLICE)) for x, y in corners]
    return (image.resize((SLICE, SLICE), Image.Resampling.BICUBIC), *quarters)


def image_tokens(slices: Sequence[Image.Image]) -> str:
    """Return the placeholder tokens of an image of one slice, or of an overview and two rows of two slices."""
    rows = "\n".join([SLICE_TOKENS * 2] * 2) if len(slices) > 1 else ""
    return f"<image_id>0</image_id>{OVERVIEW_TOKENS}{rows}\n"


def image_example(image: Image.Image, question: str, answer: str) -> Example:
    """Return a question about an image."""
    slices = cut_slices(image)
    return Example(image_tokens(slices) + question, answer, slices)


def text_example(rng: random.Random) -> Example:
    """Return a question without an image, or a text to continue; the prompt of a continuation is learned as well."""
    if rng.random() < 0.35:
        return Example(*prose.question(rng))
    return Example(*prose.continuation(rng), learn_after=prose.CONTINUE)


def conversation(example: Example) -> tuple[str, str]:
    """Return the text before the answer, and the answer with its end token."""
    before = f"{TURN_START}system\n{SYSTEM_PROMPT}{TURN_END}\n{TURN_START}user\n{example.prompt}{TURN_END}\n"
    return f"{before}{TURN_START}assistant\n", f"{example.answer}{TURN_END}"


def encode(tokenizer: Tokenizer, example: Example) -> EncodedExample:
    """Return the tokens of one conversation; only learned tokens have a label."""
    before, answer = conversation(example)
    prompt = tokenizer.encode(before).ids
    answer_ids = tokenizer.encode(answer).ids
    labels = [IGNORED_LABEL] * len(prompt)
    if example.learn_after:
        known = len(tokenizer.encode(before[: before.index(example.learn_after) + len(example.learn_after)]).ids)
        labels[known:] = prompt[known:]
    length = len(prompt) + len(answer_ids)
    row = EncodedExample(prompt + answer_ids, labels + answer_ids, list(range(length)), [0] * length)
    return append_questions(tokenizer, example, row) if example.more_questions else row


def append_questions(tokenizer: Tokenizer, example: Example, row: EncodedExample) -> EncodedExample:
    """Append further questions; each starts at the position of the first question."""
    shared = row.ids.index(token_id(tokenizer, TURN_START), 3) + 3 + image_token_count(example)
    row = EncodedExample(row.ids, row.labels, row.positions, [0] * shared + [1] * (len(row.ids) - shared))
    for number, (question, answer) in enumerate(example.more_questions, start=2):
        before, after = f"{question}{TURN_END}\n{TURN_START}assistant\n", f"{answer}{TURN_END}"
        prompt, answer_ids = tokenizer.encode(before).ids, tokenizer.encode(after).ids
        length = len(prompt) + len(answer_ids)
        row = EncodedExample(
            row.ids + prompt + answer_ids,
            row.labels + [IGNORED_LABEL] * len(prompt) + answer_ids,
            row.positions + list(range(shared, shared + length)),
            row.branch + [number] * length,
        )
    return row


def image_token_count(example: Example) -> int:
    """Return the number of image tokens: image id, slices with their two tags, and line ends."""
    slices = len(example.slices)
    return 3 + slices * (QUERIES + 2) + (1 if slices == 1 else 2)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of equal size to float32 [images, 3, height, width] in [-1, 1]."""
    stacked = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def pad_right(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Return int64 [rows, longest], padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def branch_attention_mask(branch: Tensor) -> Tensor:
    """Return bool [samples, 1, tokens, tokens]: tokens attend to earlier shared tokens and to their own branch."""
    shared, own = branch[:, None, :] == 0, branch[:, None, :] == branch[:, :, None]
    return ((shared | own).tril())[:, None]


def collate(tokenizer: Tokenizer, examples: Sequence[Example]) -> Batch:
    """Return a batch with padding on the right, which a causal model ignores."""
    rows = [encode(tokenizer, example) for example in examples]
    branched = any(example.more_questions for example in examples)
    shown = [part for example in examples for part in example.slices]
    return Batch(
        ids=pad_right([row.ids for row in rows], token_id(tokenizer, END_OF_TEXT)),
        labels=pad_right([row.labels for row in rows], IGNORED_LABEL),
        positions=pad_right([row.positions for row in rows], 0),
        pixels=pixels(shown) if shown else None,
        attention_mask=branch_attention_mask(pad_right([row.branch for row in rows], -1)) if branched else None,
    )


def draw_single(rng: random.Random, count: int) -> list[scenes.Scene]:
    """Return scenes of one slice."""
    return [scenes.single_scene(rng, SLICE) for _ in range(count)]


def scene_batch(
    tokenizer: Tokenizer, drawn: Sequence[scenes.Scene], rng: random.Random | None = None, questions: int = 1
) -> Batch:
    """Return a batch of scenes with the same number of slices; `rng` generates further questions."""
    examples = []
    for scene in drawn:
        more = tuple(scene.generate_question(rng) for _ in range(questions - 1)) if rng else ()
        examples.append(replace(image_example(scene.image, scene.question, scene.answer), more_questions=more))
    return collate(tokenizer, examples)


def draw_sliced(rng: random.Random, count: int) -> list[scenes.Scene]:
    """Return scenes that require slices."""
    return [scenes.sliced_scene(rng, SLICE) for _ in range(count)]


def text_batch(tokenizer: Tokenizer, rng: random.Random, count: int) -> Batch:
    """Return a batch without images."""
    return collate(tokenizer, [text_example(rng) for _ in range(count)])
