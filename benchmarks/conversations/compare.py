"""Compare the inputs of drawn conversations with those of transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conversations.draw import draw_conversation, draw_images
from benchmarks.conversations.oracles import open_oracle
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError

PIXEL_TOLERANCE = 1e-6  # the order of additions and divisions differs
NUM_IMAGES = 6


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number of conversations and of their parts, and the differences found."""

    conversations: int
    turns: int
    images: int
    tokens: int
    too_long: int  # drawn again
    different: tuple[str, ...]


def compare(checkpoint: Path, folder: Path, count: int, seed: int) -> Comparison:
    """Encode drawn conversations with the processor of a checkpoint, and with that of transformers."""
    random, opened = Random(seed), Checkpoint.open(checkpoint)
    oracle = open_oracle(checkpoint, opened.family)
    processor, vision = opened.family.open_processor(checkpoint), opened.family.open_vision_inputs(checkpoint)
    images = draw_images(folder, NUM_IMAGES, random)
    turns_total = images_total = tokens_total = too_long = done = 0
    different: list[str] = []
    while done < count:
        turns = draw_conversation(images, random, has_system_prompt=opened.family.prompt_format.has_system_prompt)
        try:
            inputs = processor.encode_turns(str(done), turns)
        except DatasetError:  # longer than the context
            too_long += 1
            continue
        expected = oracle.encode(turns)
        arguments = processor.model_inputs(inputs)
        different += [f"{done}: {name}" for name in _differences(arguments, expected, inputs.answer_start)]
        positions = oracle.positions(arguments)
        if positions is not None and not np.array_equal(vision.position_ids(inputs), positions):
            different.append(f"{done}: positions")
        done += 1
        turns_total += len(turns)
        images_total += len(inputs.slices_per_image)
        tokens_total += len(inputs.tokens)
    return Comparison(done, turns_total, images_total, tokens_total, too_long, tuple(different))


def _differences(
    arguments: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], length: int
) -> Iterator[str]:
    """Yield the names of arrays that differ; those with one value per token are compared in the prompt."""
    for name in ("input_ids", "mm_token_type_ids"):
        if name in arguments and name in expected and not np.array_equal(arguments[name][:, :length], expected[name]):
            yield name
    for name in ("image_grid_thw", "target_sizes"):
        if not np.array_equal(arguments.get(name, []), expected.get(name, [])):
            yield name
    pixels, others = (one.get("pixel_values", np.empty(0)) for one in (arguments, expected))
    if pixels.shape != others.shape or not np.allclose(pixels, others, rtol=0, atol=PIXEL_TOLERANCE):
        yield "pixel_values"
