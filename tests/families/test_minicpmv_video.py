"""Videos of MiniCPM-V: sampled frames, and the text with their tags."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from transformers.video_utils import VideoMetadata

from benchmarks.conversations.video_processors import processor_class
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import CheckpointError
from mcpmq.families.family import Processor
from mcpmq.families.minicpmv_video import VideoSlicing, sample_image_frames
from mcpmq.families.video_frames import VideoFrames
from tests.tiny_families import TINY_FAMILIES


def _frames(count: int, fps: float, **settings: Any) -> VideoFrames:
    def read(_: Sequence[int]) -> Iterator[Image.Image]:
        raise AssertionError("no frame is needed")

    return VideoFrames("clip", count, fps, read, **settings)


def _open(name: str, folder: Path) -> Processor:
    [tiny] = [one for one in TINY_FAMILIES if one.name + one.variant == name]
    return Checkpoint.open(tiny.build(folder / "tiny")).family.open_processor(folder / "tiny")


def _text(processor: Processor, folder: Path, size: tuple[int, int] = (56, 56)) -> tuple[str, list[int]]:
    """Return the prompt with an image and a video of two frames, and the number of slices of each."""
    files = tuple(folder / f"{number}.png" for number in range(3))
    for file in files:
        Image.new("RGB", size).save(file)
    prompt = Turn("user", (files[0], Video(files[1:]), "?"))
    inputs = processor.encode_turns("one", [prompt, Turn("assistant", ("no",))])
    text = processor.tokenizer.decode(inputs.tokens[: inputs.answer_start].tolist(), skip_special_tokens=False)
    return text, list(inputs.slices_per_image)


def test_sampled_frames_are_those_of_transformers() -> None:
    """One frame a second, or at most the given number, for drawn lengths and rates."""
    processor, settings, random = processor_class("MiniCPMV4_6VideoProcessor")(), VideoSlicing(), Random(3)
    for _ in range(150):
        count, fps = random.randint(1, 9000), random.choice((0.5, 1.0, 2.0, 23.976, 30.0))
        number = random.choice((None, 4, 64))
        metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps)

        expected = processor.sample_frames(metadata, max_num_frames=number)

        assert settings.sample(_frames(count, fps, sample_count=number)) == list(expected)


@pytest.mark.parametrize(
    ("video", "indices"),
    [
        (_frames(5, 2.0, is_sampled=True), [0, 1, 2, 3, 4]),
        (_frames(10, 2.5), [0, 2, 4, 6, 8]),  # round(2.5) = 2
        (_frames(10, 0.2), list(range(10))),
        (_frames(10, 30.0, sample_fps=10.0), [0, 3, 6, 9]),
        (_frames(8, 30.0, sample_count=2), [2, 6]),
        (_frames(640, 5.0), [5 * int(2 * number + 1) for number in range(64)]),
    ],
)
def test_frames_that_become_images_are_as_published(video: VideoFrames, indices: list[int]) -> None:
    """One a second, at most 64, from the middle of equal parts."""
    assert sample_image_frames(video) == indices


def test_frames_are_images_without_ids(tmp_path: Path) -> None:
    """In 2.6 no image of a prompt with a video has an id, and all have at most two slices; 4.5 has one."""
    text, slices = _text(_open("minicpm-v-2.6", tmp_path / "2.6"), tmp_path, (168, 56))
    image = f"<image>{'<unk>' * 4}</image>" + f"<slice>{'<unk>' * 4}</slice>" * 2
    assert slices == [3, 3, 3]
    assert f"user\n{image}\n{image}\n{image}\n?" in text

    text, slices = _text(_open("minicpm-v-4.5", tmp_path / "4.5"), tmp_path, (168, 56))
    assert slices == [1, 1, 1]
    assert "image_id" not in text
    assert "slice" not in text


def test_videos_have_tokens_of_their_own(tmp_path: Path) -> None:
    """In 4.6 a video has an id and its frames have none; in 4.7 neither has one."""
    image, frame = (f"<image>{f'<|{name}_pad|>' * 4}</image>" for name in ("image", "video"))
    for name, tag in (("minicpm-v-4.6", "<image_id>0</image_id>"), ("minicpm-v-4.7", "")):
        text, slices = _text(_open(name, tmp_path / name), tmp_path, (112, 112))
        assert slices == [1, 1, 1]
        assert f"<image_id>0</image_id>{image}\n{tag}{frame}{frame}\n?" in text


def test_settings_of_videos_must_fit_those_of_images(tmp_path: Path) -> None:
    """Stacked frames and other pixel values are errors that name the file."""
    processor = _open("minicpm-v-4.6", tmp_path)
    given = json.loads((tmp_path / "tiny" / "preprocessor_config.json").read_text())
    for settings, message in (
        ({"stack_frames": 3}, "stack_frames"),
        ({"image_std": [0.25] * 3}, "the mean_and_std of videos is not that of images"),
        ({"downsample_mode": "4x"}, "the downsample_mode of videos is not that of images"),
        ({"video_processor_type": "Other"}, "video_processor_type"),
    ):
        (tmp_path / "tiny" / "video_preprocessor_config.json").write_text(json.dumps({**given, **settings}))
        with pytest.raises(CheckpointError, match=message):
            _text(processor, tmp_path)


def test_a_tokenizer_without_the_placeholder_is_an_error(tmp_path: Path) -> None:
    """Images do not need it."""
    processor = _open("qwen2-vl", tmp_path)
    file = tmp_path / "tiny" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|video_pad|>", "<|other_pad|>"))
    changed = Checkpoint.open(tmp_path / "tiny").family.open_processor(tmp_path / "tiny")
    Image.new("RGB", (56, 56)).save(tmp_path / "one.png")

    assert changed.encode("one", tmp_path / "one.png", "?", "no").slices
    assert _text(processor, tmp_path)[1] == [1, 1]
    with pytest.raises(CheckpointError, match=r"no token `<\|video_pad\|>`"):
        _text(changed, tmp_path)
