"""Draw random conversations of several turns, images, videos, audio and system prompts."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mcpmq.dataset import Audio, Part, Turn, Video
from tests.audio_tools import write_wav

WORDS = ("red", "sign", "Où?", "three", "the\nlist", " two  spaces", "1,024", "é", "看", "is it", "A.", "no")
SIDES = (28, 56, 70, 100, 150, 220, 330)
MAX_TURNS, MAX_IMAGES = 4, 3  # prompts of a conversation, images of a prompt
MAX_FRAMES = 7  # of a video
MILLISECONDS = (40, 100, 250, 500, 1000)  # of a frame
VIDEO_KINDS = ("frames", "timed frames", "counted frames", "file", "timed file")


def draw_images(folder: Path, count: int, random: Random) -> list[Path]:
    """Write random images of different sizes, and return their files."""
    files = []
    for number in range(count):
        width, height = random.choice(SIDES), random.choice(SIDES)
        noise = np.random.default_rng(random.randrange(1 << 32)).integers(0, 256, (height, width, 3), np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(noise).save(files[-1])
    return files


def draw_videos(folder: Path, count: int, random: Random) -> dict[str, list[Video]]:
    """Write random frames and animations of different sizes, and return videos of every kind of `VIDEO_KINDS`.

    They are lists of frames without a rate, with one, or with a number to sample; and files, also with a rate to
    sample.
    """
    videos: dict[str, list[Video]] = {kind: [] for kind in VIDEO_KINDS}
    for number in range(count):
        frames = _draw_frames(random)
        files = tuple(folder / f"{number}-{index}.png" for index in range(len(frames)))
        for file, frame in zip(files, frames, strict=True):
            frame.save(file)
        fps = random.choice((0.5, 1.0, 2.0, 3.0, 25.0))
        videos["frames"].append(Video(files))
        videos["timed frames"].append(Video(files, fps))
        videos["counted frames"].append(Video(files, fps, random.randint(2, len(frames))))
        animation = folder / f"{number}.{random.choice(('gif', 'webp', 'png'))}"
        durations = [random.choice(MILLISECONDS)] * len(frames)
        frames[0].save(animation, save_all=True, append_images=frames[1:], duration=durations, lossless=True)
        videos["file"].append(Video(animation))
        videos["timed file"].append(Video(animation, random.choice((1.0, 2.0, 8.0))))
    return videos


def draw_audio(folder: Path, count: int, random: Random) -> list[Audio]:
    """Write WAV files of different lengths, and return them."""
    files = [folder / f"{number}.wav" for number in range(count)]
    for file in files:
        write_wav(file, random.uniform(0.1, 4.0), seed=random.randrange(1 << 16))
    return [Audio(file) for file in files]


def _draw_frames(random: Random) -> list[Image.Image]:
    width, height, count = random.choice(SIDES), random.choice(SIDES), random.randint(2, MAX_FRAMES)
    generator = np.random.default_rng(random.randrange(1 << 32))
    return [Image.fromarray(one) for one in generator.integers(0, 256, (count, height, width, 3), np.uint8)]


def draw_conversation(
    images: list[Path],
    random: Random,
    *,
    has_system_prompt: bool = True,
    videos: Sequence[Video] = (),
    audio: Sequence[Audio] = (),
) -> tuple[Turn, ...]:
    """Return the turns of a conversation; images, videos and audio are in any place of its prompts, also side by side.

    Given `videos`, the first prompt has one of them.
    """
    turns = []
    if has_system_prompt and random.random() < 0.3:
        turns.append(Turn("system", (_text(random),)))
    for _ in range(random.randint(1, MAX_TURNS)):
        is_first = not any(turn.role == "user" for turn in turns)
        content = _content(images, random, videos, audio, is_first)
        turns += [Turn("user", content), Turn("assistant", (_text(random),))]
    return tuple(turns)


def _content(
    images: list[Path], random: Random, videos: Sequence[Video], audio: Sequence[Audio], is_first: bool
) -> tuple[Part, ...]:
    chosen = random.choices(images, k=random.choice((0, 0, 1, 1, 2, MAX_IMAGES))) if images else []
    parts: list[Part] = [*chosen, *(_text(random) for _ in range(random.randint(1, 2)))]
    if videos:
        parts += random.choices(videos, k=1 if is_first else random.choice((0, 0, 1)))
    if audio:
        parts += random.choices(audio, k=random.choice((0, 1, 1, 2)))
    random.shuffle(parts)
    return tuple(parts)


def _text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, 5))).strip()
