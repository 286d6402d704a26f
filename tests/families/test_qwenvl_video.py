"""Videos of Qwen-VL: sampling, sizes, timestamps and arguments, compared with transformers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.video_utils import VideoMetadata

from benchmarks.conversations.compare import separate_arguments
from benchmarks.conversations.video_processors import processor_class
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.position_ids import mrope_position_ids
from mcpmq.families.qwenvl_resizing import PixelBounds, Resizing
from mcpmq.families.qwenvl_video import TimedVideoResizing, VideoResizing, open_video_resizing
from mcpmq.families.video_frames import VideoFrames, resize_frame
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.checkpoint_tools import edit_json
from tests.reference_model import reference_model
from tests.tiny_families import TINY_FAMILIES


def _frames(count: int, fps: float, size: tuple[int, int] = (40, 30), **settings: Any) -> VideoFrames:
    def read(indices: Sequence[int]) -> Iterator[Image.Image]:
        return (Image.new("RGB", size, (index % 256, 0, 0)) for index in indices)

    return VideoFrames("clip", count, fps, read, **settings)


def _build(name: str, folder: Path) -> Path:
    [tiny] = [one for one in TINY_FAMILIES if one.name == name]
    return tiny.build(folder / "tiny")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Qwen2.5-VL, whose videos have times in seconds."""
    return _build("qwen2.5-vl", tmp_path_factory.mktemp("timed"))


@pytest.mark.parametrize("kind", [VideoResizing, TimedVideoResizing])
def test_sampled_frames_are_those_of_transformers(kind: type[VideoResizing]) -> None:
    """By a rate or a number, for drawn lengths and rates."""
    name = "Qwen3VLVideoProcessor" if kind is TimedVideoResizing else "Qwen2VLVideoProcessor"
    processor, settings, random = processor_class(name)(), kind(), Random(7)
    for _ in range(150):
        count, fps = random.randint(4, 900), random.choice((1.0, 2.0, 7.5, 23.976, 30.0))
        rate, number = random.choice((0.5, 1.0, 2.0, 3.7)), random.randint(2, count)
        options: dict[str, Any] = random.choice(({"fps": rate}, {"num_frames": number}))
        expected = processor.sample_frames(VideoMetadata(total_num_frames=count, fps=fps), **options)
        video = _frames(count, fps, sample_fps=options.get("fps"), sample_count=options.get("num_frames"))

        assert settings._indices(video) == expected.tolist()


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("kind", [VideoResizing, TimedVideoResizing])
def test_frame_sizes_are_those_of_transformers(
    kind: type[VideoResizing], cap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For drawn sizes and numbers of frames, with and without the bound of a frame."""
    name = "Qwen3VLVideoProcessor" if kind is TimedVideoResizing else "Qwen2VLVideoProcessor"
    processor, settings, random = processor_class(name)(), kind(cap_pixels_per_frame=cap), Random(8)
    monkeypatch.setattr(TorchvisionBackend, "resize", lambda _, size, **__: (size.width, size.height))
    options = {"factor": settings.size_factor, "temporal_factor": 2, "cap_pixels_per_frame": cap}
    for _ in range(200):
        width, height = (random.choice((20, 31, 100, 333, 640, 1920)) for _ in range(2))
        count = random.choice((2, 3, 8, 65, 700))
        video = SimpleNamespace(shape=(1, count, 3, height, width))

        expected = processor.resize(video, size=processor.size, resample=None, **options)

        assert settings._frame_size(count, width, height) == expected


def test_frames_are_grouped_and_the_last_one_is_repeated() -> None:
    """Five frames are three temporal patches; a timestamp is the mean of the first and the last frame of a patch."""
    bounds = PixelBounds(shortest_edge=784, longest_edge=7840)

    sampled = VideoResizing(size=bounds).sample(_frames(5, 2.0, (56, 28)))

    assert [pixels[:, 0, 0, 0].tolist() for pixels in sampled.slices] == [[0, 1], [2, 3], [4, 4]]
    assert [pixels.shape for pixels in sampled.slices] == [(2, 28, 56, 3)] * 3
    assert sampled.timestamps == [0.25, 1.25, 2.0]
    assert sampled.seconds_per_slice == 1.0


def test_frames_of_other_sizes_and_too_few_frames_are_errors() -> None:
    """The error names the video, and has the numbers."""
    sizes = iter([(40, 30), (40, 32)])
    mixed = VideoFrames("clip", 2, 1.0, lambda indices: (Image.new("RGB", next(sizes)) for _ in indices))

    with pytest.raises(DatasetError, match="clip: frame 1 has 40x32 pixels, the first one 40x30"):
        VideoResizing().sample(mixed)
    with pytest.raises(DatasetError, match="clip has 3 frames, fewer than the 8 to sample"):
        VideoResizing().sample(_frames(3, 1.0, sample_count=8))
    with pytest.raises(DatasetError, match="clip has too few frames to sample: 1"):
        VideoResizing().sample(_frames(1, 1.0, sample_fps=2.0))
    with pytest.raises(DatasetError, match="1 frames, fewer than the 2 of a temporal patch"):
        TimedVideoResizing().sample(_frames(1, 1.0))


def test_a_frame_is_resized_bicubically() -> None:
    """A smooth frame is that of Pillow but for rounding; one of the same size does not change."""
    rows, columns = np.mgrid[:40, :60]
    pixels = np.stack([rows * 6, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    frame = Image.fromarray(pixels)

    found = resize_frame(frame, 90, 28).astype(int)

    assert np.abs(found - np.asarray(frame.resize((90, 28), Image.Resampling.BICUBIC))).max() <= 1
    np.testing.assert_array_equal(resize_frame(frame, 60, 40), pixels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video_processor_type": "OtherVideoProcessor"}, "`OtherVideoProcessor`, which is not supported"),
        ({"temporal_patch_size": 4}, "the temporal_patch_size of videos is not that of images"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "the mean_and_std of videos is not that of images"),
        ({"resample": 2}, "resample"),
    ],
)
def test_settings_that_the_vision_encoder_cannot_have_are_errors(
    settings: dict[str, Any], message: str, timed: Path, tmp_path: Path
) -> None:
    """Patches and pixel values are those of images; the file is named."""
    given = {**json.loads((timed / "preprocessor_config.json").read_text()), **settings}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(given))

    with pytest.raises(CheckpointError, match=f"video_preprocessor_config.json.*{message}"):
        open_video_resizing(tmp_path, "qwen2_5_vl", Resizing.open(timed))


def test_settings_are_read_as_in_transformers(timed: Path, tmp_path: Path) -> None:
    """The nested key, the file for videos, then the file for images; the model type decides without a class."""
    images = Resizing.open(timed)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (tmp_path / name).write_text((timed / "preprocessor_config.json").read_text())
        edit_json(tmp_path / name, max_frames=len(name), image_processor_type="Qwen2VLImageProcessorFast")
        assert open_video_resizing(tmp_path, "qwen2_5_vl", images).max_frames == len(name)
    assert type(open_video_resizing(tmp_path, "qwen3_vl", images)) is TimedVideoResizing
    nested = {"video_processor": {**json.loads((timed / "preprocessor_config.json").read_text()), "max_frames": 9}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert open_video_resizing(tmp_path, "qwen2_5_vl", images).max_frames == 9


def test_positions_of_a_video_have_times() -> None:
    """Slices that follow one another have the same rows and columns; the text continues after the longer side."""
    spans, grids = [(1, 3), (3, 5), (7, 8)], [(1, 2), (1, 2), (1, 1)]

    positions = mrope_position_ids(9, spans, grids, [0, 5, 0])

    assert positions.tolist() == [
        [0, 1, 1, 6, 6, 3, 4, 5, 6],
        [0, 1, 1, 1, 1, 3, 4, 5, 6],
        [0, 1, 2, 1, 2, 3, 4, 5, 6],
    ]


def test_images_beside_a_video_give_the_same_logits(timed: Path, tmp_path: Path) -> None:
    """The arguments of one pass through the vision encoder, and those with images and videos apart."""
    noise = np.random.default_rng(2).integers(0, 256, (4, 56, 84, 3), np.uint8)
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file, pixels in zip(files, noise, strict=True):
        Image.fromarray(pixels).save(file)
    family = Checkpoint.open(timed).family
    processor = family.open_processor(timed)
    prompt = Turn("user", (files[0], "and", Video(tuple(files[1:]), 0.7), "?"))
    inputs = processor.encode_turns("one", [prompt, Turn("assistant", ("yes",))])
    full = quantize(make_plan(Checkpoint.open(timed), Recipe.load("full")), tmp_path / "full")
    model = reference_model(full)

    merged, apart = (
        model(**{name: torch.from_numpy(value) for name, value in arguments.items()}).logits
        for arguments in (
            processor.model_inputs(inputs),
            separate_arguments(processor, family.prompt_format, inputs),
        )
    )

    assert inputs.modality == "video"
    assert inputs.slice_times == (0, 0, 11)  # 4 positions a second, 2 / 0.7 seconds
    torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)


def test_timestamps_are_inside_of_the_tags(tmp_path: Path) -> None:
    """Qwen3-VL writes the time before every temporal patch."""
    checkpoint = _build("qwen3-vl", tmp_path)
    files = tuple(tmp_path / f"{number}.png" for number in range(4))
    for file in files:
        Image.new("RGB", (64, 64)).save(file)
    processor = Checkpoint.open(checkpoint).family.open_processor(checkpoint)

    inputs = processor.encode_turns("one", [Turn("user", (Video(files, 1.0), "?")), Turn("assistant", ("no",))])

    text = processor.tokenizer.decode(inputs.tokens.tolist(), skip_special_tokens=False)
    pads = "<|vision_start|>" + "<|video_pad|>" * int(inputs.image_bounds[0, 1] - inputs.image_bounds[0, 0])
    times = "".join(f"<{time} seconds>{pads}<|vision_end|>" for time in (0.5, 2.5))
    assert f"<|vision_start|>{times}<|vision_end|>?" in text
