"""Batches of images of one size, with several questions about each, as arrays; drawn in worker processes.

The questions about an image are branches of one sequence: tokens attend to those of the image and to those of their
own question, and every question starts at the same position, so that each is computed as if it were the only one.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.real_weights.tower.framed_scenes import draw_scene, questions
from calibration.drawing import COLORS, SHAPES, SIZES, SceneObject
from calibration.scene_labels import CHARACTERS, REGIONS, SIDE, Labels, label_arrays
from calibration.scenes import Scene

TOKEN_SIDE = 28  # pixels of an image token
IMAGE_TOKEN = "<|image_pad|>"
# The chat template of the checkpoint, around the tokens of an image, a question and an answer.
BEFORE_IMAGE, AFTER_IMAGE = "<|im_start|>user\n<|vision_start|>", "<|vision_end|>"
AFTER_QUESTION, AFTER_ANSWER = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
LENGTH_MULTIPLE = 16  # of a sequence, which attention on GPUs needs
PADDING = -1  # the branch of padding
WORDS = (*(f" {word}" for word in (*COLORS, *SHAPES, *SIZES)), *CHARACTERS)

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """The size of a batch; equal specs give equal batches."""

    seed: str
    images: int
    questions: int
    large: bool = False
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """pixels uint8 [images, height, width, 3]; ids and branch [images, tokens]; positions [3, images, tokens].

    `places` has the flat indices of the tokens before those of answers, `targets` the tokens of answers, `owners` the
    number of their question, and `skills` the skill of every question. `labels` are those of `label_arrays`, and
    `words` [images, regions, words], 1 for the words of `WORDS` in a region; large images have none.
    """

    pixels: NDArray[np.uint8]
    ids: Ids
    branch: Ids
    positions: Ids
    places: Ids
    targets: Ids
    owners: Ids
    skills: tuple[str, ...]
    labels: Labels


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence; `places` are indices in it, `lengths` the numbers of tokens of its answers."""

    ids: list[int]
    branch: list[int]
    positions: Ids
    places: list[int]
    lengths: list[int]


@cache
def tokenizer_of(file: Path) -> Tokenizer:
    """Open a tokenizer once in every process."""
    return Tokenizer.from_file(str(file))


def draw_batch(tokenizer_file: Path, spec: BatchSpec) -> Batch:
    """Draw images and encode their questions."""
    rng, tokenizer = random.Random(spec.seed), tokenizer_of(tokenizer_file)
    scenes = [draw_scene(rng, spec.large, spec.held_out) for _ in range(spec.images)]
    answers = [list(questions(rng, scene, spec.questions)) for scene in scenes]
    pixels = np.stack([np.asarray(scene.image) for scene in scenes])
    grid = pixels.shape[1] // TOKEN_SIDE, pixels.shape[2] // TOKEN_SIDE
    rows = [_encode(tokenizer, grid, pairs) for pairs in answers]
    skills = tuple(scene.skill for scene, pairs in zip(scenes, answers, strict=True) for _ in pairs)
    return _collate(rows, pixels, skills, {} if spec.large else label_arrays(scenes) | {"words": _words(scenes)})


def _encode(tokenizer: Tokenizer, grid: tuple[int, int], pairs: Sequence[tuple[str, str]]) -> _Row:
    """Return the sequence with the image tokens and the branches of all questions."""
    before = tokenizer.encode(BEFORE_IMAGE).ids
    ids = [*before, *tokenizer.encode(IMAGE_TOKEN).ids * (grid[0] * grid[1]), *tokenizer.encode(AFTER_IMAGE).ids]
    positions = [_image_positions(len(before), grid)]
    branch, start = [0] * len(ids), int(positions[0][0, -1]) + 1
    places: list[int] = []
    lengths: list[int] = []
    for number, (question, answer) in enumerate(pairs, start=1):
        prompt, answered = (tokenizer.encode(text).ids for text in (question + AFTER_QUESTION, answer + AFTER_ANSWER))
        places += range(len(ids) + len(prompt) - 1, len(ids) + len(prompt) + len(answered) - 1)
        lengths.append(len(answered))
        ids += prompt + answered
        branch += [number] * (len(prompt) + len(answered))
        positions.append(np.tile(np.arange(start, start + len(prompt) + len(answered)), (3, 1)))
    return _Row(ids, branch, np.concatenate(positions, axis=1), places, lengths)


def _image_positions(start: int, grid: tuple[int, int]) -> Ids:
    """Return time, row and column of the tokens before, of and after the image: int64 [3, tokens]."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    image = start + np.stack([np.zeros_like(row), row, column])
    before, after = np.tile(np.arange(start), (3, 1)), np.full((3, 1), start + max(grid))
    return np.concatenate([before, image, after], axis=1)


def _collate(rows: Sequence[_Row], pixels: NDArray[np.uint8], skills: tuple[str, ...], labels: Labels) -> Batch:
    longest = max(len(row.ids) for row in rows)
    length = -longest % LENGTH_MULTIPLE + longest
    ids, branch = (np.full((len(rows), length), filler) for filler in (0, PADDING))
    positions = np.zeros((3, len(rows), length), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], branch[number, : len(row.ids)] = row.ids, row.branch
        positions[:, number, : len(row.ids)] = row.positions
    places = np.array([number * length + place for number, row in enumerate(rows) for place in row.places])
    lengths = list(chain.from_iterable(row.lengths for row in rows))
    owners = np.repeat(np.arange(len(lengths)), lengths)
    targets = ids.ravel()[places + 1]
    return Batch(pixels, ids, branch, positions, places, targets, owners, skills, labels)


def _words(scenes: Sequence[Scene]) -> Ids:
    """Return 1 for every word of a region: those of the object in its quarter, and its characters."""
    found = np.zeros((len(scenes), REGIONS**2, len(WORDS)), np.int64)
    for number, scene in enumerate(scenes):
        for quarter, item in enumerate(scene.labels.objects):
            for region in _regions(quarter) if item else ():
                found[number, region, [WORDS.index(f" {word}") for word in _object_words(item)]] = 1
        for glyph in scene.labels.glyphs:
            row, column = (min(REGIONS - 1, max(0, int(at * REGIONS / SIDE))) for at in (glyph.y, glyph.x))
            found[number, row * REGIONS + column, WORDS.index(glyph.character)] = 1
    return found


def _regions(quarter: int) -> Iterator[int]:
    row, column = (2 * part for part in divmod(quarter, 2))
    yield from ((row + down) * REGIONS + column + right for down in (0, 1) for right in (0, 1))


def _object_words(item: SceneObject | None) -> tuple[str, ...]:
    return (item.size, item.color, item.shape) if item else ()


def drawn_ahead(pool: Executor, tokenizer: Path, queue: Iterable[BatchSpec], ahead: int) -> Iterator[Batch]:
    """Return batches in their order, drawn by a pool ahead of their use; drawing starts at once."""
    left = iter(queue)
    waiting = deque(pool.submit(draw_batch, tokenizer, spec) for spec in islice(left, ahead))
    return _results(pool, tokenizer, left, waiting)


def _results(
    pool: Executor, tokenizer: Path, left: Iterator[BatchSpec], waiting: deque[Future[Batch]]
) -> Iterator[Batch]:
    try:
        while waiting:
            waiting.extend(pool.submit(draw_batch, tokenizer, spec) for spec in islice(left, 1))
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()
