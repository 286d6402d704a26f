"""Compare the inputs of drawn conversations with those of transformers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conversations.draw import draw_audio, draw_conversation, draw_images, draw_videos
from benchmarks.conversations.oracles import open_oracle
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Video
from mcpmq.errors import DatasetError
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs
from mcpmq.families.prompt_format import PromptFormat

NUM_IMAGES = 6
NUM_VIDEOS = 8  # of every kind
NUM_AUDIO = 6
FEATURE_TOLERANCE = 5e-5  # of spectrograms, which torch computes in float32
ONE_SETTING = ("counted frames", "timed file")  # kinds whose videos of one conversation have the same settings
OF_VIDEOS = {"pixel_values": "pixel_values_videos", "target_sizes": "target_sizes_videos"}  # where the names differ
OF_PARTS = ("spatial_shapes", "pixel_attention_mask", "feature_attention_mask")
PER_TOKEN = ("input_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number of conversations and of their parts, and the differences found."""

    conversations: int
    turns: int
    images: int
    videos: int
    audios: int
    tokens: int
    too_long: int  # drawn again
    different: tuple[str, ...]


def compare(checkpoint: Path, folder: Path, count: int, seed: int, *, with_videos: bool = False) -> Comparison:
    """Encode drawn conversations with the processor of a checkpoint, and with that of transformers.

    `with_videos` gives every conversation one or more videos.

    Raises:
        ValueError: the family does not support videos.
    """
    random, opened = Random(seed), Checkpoint.open(checkpoint)
    if with_videos and not opened.family.prompt_format.supports_video:
        raise ValueError(f"{opened.family.name} does not support videos")
    oracle = open_oracle(checkpoint, opened.family)
    processor, vision = opened.family.open_processor(checkpoint), opened.family.open_vision_inputs(checkpoint)
    images = draw_images(folder, NUM_IMAGES, random)
    videos = draw_videos(folder, NUM_VIDEOS, random) if with_videos else {}
    audio = draw_audio(folder, NUM_AUDIO, random) if oracle.has_audio else []
    turns_total = images_total = videos_total = audios_total = tokens_total = too_long = done = 0
    different: list[str] = []
    while done < count:
        turns = draw_conversation(
            images,
            random,
            has_system_prompt=opened.family.prompt_format.has_system_prompt,
            videos=_draw_pool(videos, oracle.video_kinds, random),
            audio=audio,
        )
        try:
            inputs = processor.encode_turns(str(done), turns)
        except DatasetError:  # longer than the context
            too_long += 1
            continue
        expected = oracle.encode(turns)
        arguments = separate_arguments(processor, opened.family.prompt_format, inputs)
        found = _differences(arguments, expected, inputs.answer_start, oracle.pixel_tolerance)
        different += [f"{done}: {name}" for name in found]
        positions = oracle.positions(arguments)
        if positions is not None and not np.array_equal(vision.position_ids(inputs), positions):
            different.append(f"{done}: positions")
        done += 1
        turns_total += len(turns)
        images_total += sum(len(turn.images) for turn in turns)
        videos_total += sum(len(turn.videos) for turn in turns)
        audios_total += sum(len(turn.audio) for turn in turns)
        tokens_total += len(inputs.tokens)
    counts = turns_total, images_total, videos_total, audios_total, tokens_total
    return Comparison(done, *counts, too_long, tuple(different))


def _draw_pool(videos: Mapping[str, Sequence[Video]], kinds: Sequence[str], random: Random) -> Sequence[Video]:
    """Return the videos of a conversation, which are of one of the kinds."""
    if not videos:
        return ()
    kind = random.choice(kinds)
    return [random.choice(videos[kind])] if kind in ONE_SETTING else videos[kind]


def separate_arguments(processor: Processor, prompt_format: PromptFormat, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return the arguments of a forward pass with images and videos in arrays of their own, as in transformers."""
    if not inputs.frame_intervals or not prompt_format.video_token:
        return processor.model_inputs(inputs)
    is_video = [interval > 0 for interval in inputs.frame_intervals]
    of_images = processor.model_inputs(_selected(inputs, [not one for one in is_video]))
    of_videos = processor.model_inputs(_selected(inputs, is_video))
    of_videos = {OF_VIDEOS.get(name, name): value for name, value in of_videos.items()}
    arguments = {**of_images, **of_videos, "input_ids": inputs.tokens[None]}
    if "mm_token_type_ids" in of_videos:
        tokens = prompt_format.image_token, prompt_format.video_token
        image, video = (arguments["input_ids"] == processor.tokenizer.token_to_id(token) for token in tokens)
        arguments["mm_token_type_ids"] = (image + 2 * video).astype(np.int32)
    return arguments


def _selected(inputs: Inputs, selection: Sequence[bool]) -> Inputs:
    """Return the inputs with some of their images and videos."""
    slices = np.repeat(selection, inputs.slices_per_image).tolist()
    intervals = tuple(compress(inputs.frame_intervals, selection))
    return replace(
        inputs,
        slices=tuple(compress(inputs.slices, slices)),
        image_bounds=inputs.image_bounds[slices],
        slices_per_image=tuple(compress(inputs.slices_per_image, selection)),
        frame_intervals=intervals if any(intervals) else (),
    )


def _differences(
    arguments: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], length: int, tolerance: float
) -> Iterator[str]:
    """Yield the names of arrays that differ; those with one value per token are compared in the prompt."""
    for name in PER_TOKEN:
        if name in arguments and name in expected and not np.array_equal(arguments[name][:, :length], expected[name]):
            yield name
    for name in ("image_grid_thw", "video_grid_thw", "target_sizes", "target_sizes_videos"):
        if not np.array_equal(arguments.get(name, []), expected.get(name, [])):
            yield name
    for name in OF_PARTS:
        if name in arguments and not np.array_equal(arguments[name], expected[name]):
            yield name
    tolerances = dict.fromkeys(("pixel_values", "pixel_values_videos", "second_per_grid_ts"), tolerance)
    for name, largest in {**tolerances, "input_features": FEATURE_TOLERANCE}.items():
        found, others = (one.get(name, np.empty(0)) for one in (arguments, expected))
        if found.shape != others.shape or not np.allclose(found, others, rtol=0, atol=largest):
            yield name
