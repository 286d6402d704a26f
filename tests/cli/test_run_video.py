"""`mcpmq run --video`: frames of a video file or of a folder, in engines that take those of the original."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import DatasetError
from mcpmq.families.messages import Message
from mcpmq.families.video_frames import read_video
from tests.checkpoint_tools import build_family
from tests.commands import Command

QUESTION = "What does the sign say?"
SETTINGS = ("--max-tokens", 4, "--threads", 1, "--json")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An animation of twelve frames, and a folder of its frames."""
    folder = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(4).integers(0, 256, (12, 56, 56, 3), np.uint8)
    frames = [Image.fromarray(one) for one in noise]
    frames[0].save(folder / "clip.webp", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{number}.png")
    return folder / "clip.webp", folder / "frames"


@pytest.mark.parametrize("index", [0, 1], ids=["file", "folder"])
def test_a_video_has_the_tokens_of_a_sample(
    mcpmq: Command, tiny_checkpoint: Path, tiny_exports: list[Artifact], videos: tuple[Path, Path], index: int
) -> None:
    """ONNX Runtime and llama.cpp with `--exact` get the prompt that a sample of a set has; a folder is used whole."""
    gguf, onnx = tiny_exports
    source = videos[index] if index == 0 else tuple(sorted(videos[1].iterdir(), key=lambda file: int(file.stem)))
    turns = [Turn("user", (Video(source), QUESTION)), Turn("assistant", ("Red.",))]
    processor = Checkpoint.open(tiny_checkpoint).family.open_processor(tiny_checkpoint)
    expected = processor.encode_turns("one", turns).answer_start

    answers = [
        json.loads(mcpmq("run", path, QUESTION, "--video", videos[index], *options, *SETTINGS).stdout)
        for path, options in ((onnx.path, ()), (gguf.path, ("--exact", "--source", tiny_checkpoint)))
    ]

    assert [answer["prompt_tokens"] for answer in answers] == [expected, expected]


def test_the_server_of_llama_cpp_takes_no_video(
    mcpmq: Command, tiny_exports: list[Artifact], videos: tuple[Path, Path]
) -> None:
    """The hint names the option that gives it the frames of the original."""
    result = mcpmq("run", tiny_exports[0].path, QUESTION, "--video", videos[0], *SETTINGS)

    assert result.exit_code == 1
    assert "the chat has a video, which the server of llama.cpp does not accept" in result.stderr
    assert "ask with `--exact`" in result.stderr


def test_a_family_without_videos_is_an_error(videos: tuple[Path, Path], tmp_path: Path) -> None:
    """The error names the reason; a file that is not a video is named too."""
    processor = Checkpoint.open(build_family("smolvlm2", tmp_path)).family.open_processor(tmp_path)
    with pytest.raises(DatasetError, match="the chat has a video, which mcpmq does not support for this model"):
        processor.encode_chat([Message("user", (read_video(videos[0], "--video"), QUESTION))])

    (tmp_path / "clip.mp4").write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"--video: the video `clip\.mp4`"):
        read_video(tmp_path / "clip.mp4", "--video")
