"""Videos of samples: files, folders of frames and lists of frames, in all formats of records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcpmq.dataset import EmbeddedImage, SampleSet, Turn, Video
from mcpmq.dataset.statistics import set_statistics
from mcpmq.dataset.writing import write_set
from mcpmq.errors import DatasetError

PROMPT = "What moves?"
ANSWER = Turn("assistant", ("A dot.",))
CHAT = [{"role": "user", "content": f"<video>{PROMPT}"}, {"role": "assistant", "content": "A dot."}]
SHARED = [{"from": "human", "value": f"<video>{PROMPT}"}, {"from": "gpt", "value": "A dot."}]
CLIP = {"type": "video", "video": "clip.gif"}
FRAMES = ["frames/2.png", "frames/10.png", "frames/1.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image, an animation, and a folder of three frames."""
    noise = np.random.default_rng(1).integers(0, 256, (4, 14, 28, 3), np.uint8)
    images = [Image.fromarray(one) for one in noise]
    images[0].save(tmp_path / "still.png")
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:3], duration=100)
    (tmp_path / "frames").mkdir()
    for name, image in zip(FRAMES, images[1:], strict=True):
        image.save(tmp_path / name)
    return tmp_path


def _open(folder: Path, *records: Any, name: str = "train.jsonl") -> SampleSet:
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return SampleSet.open(folder / name)


def _parts(**video: Any) -> list[dict[str, Any]]:
    content = [{"type": "video", **video}, {"type": "text", "text": PROMPT}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "A dot."}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "videos": ["clip.gif"]},
        {"messages": _parts(video="clip.gif")},
        {"messages": _parts(path="clip.gif")},
        {"messages": _parts(url="file://clip.gif")},
        {"messages": _parts(), "videos": ["clip.gif"]},
        {"conversations": SHARED, "video": "clip.gif"},
        {"conversations": [{**SHARED[0], "value": f"<image>{PROMPT}"}, SHARED[1]], "video": "clip.gif"},
        {"query": f"<video>{PROMPT}", "response": "A dot.", "videos": ["clip.gif"]},
        {"instruction": PROMPT, "output": "A dot.", "videos": [{"bytes": None, "path": "clip.gif"}]},
        {"question": PROMPT, "answer": "A dot.", "video": ["clip.gif"]},
    ],
)
def test_every_format_gives_the_same_conversation(folder: Path, record: dict[str, Any]) -> None:
    """One video, one prompt and one answer."""
    [sample] = _open(folder, record)

    assert sample.turns == (Turn("user", (Video(folder / "clip.gif"), PROMPT)), ANSWER)
    assert (sample.images, sample.videos, sample.files) == ((), (Video(folder / "clip.gif"),), (folder / "clip.gif",))


@pytest.mark.parametrize(
    ("record", "names", "fps"),
    [
        ({"messages": CHAT, "videos": ["frames"]}, [FRAMES[2], FRAMES[0], FRAMES[1]], None),
        ({"messages": CHAT, "videos": [FRAMES]}, FRAMES, None),
        ({"messages": CHAT, "video": FRAMES, "fps": 4}, FRAMES, 4.0),
        ({"messages": CHAT, "videos": [FRAMES], "fps": [0.5]}, FRAMES, 0.5),
        ({"messages": _parts(video=FRAMES, sample_fps="1.5")}, FRAMES, 1.5),
    ],
)
def test_frames_are_in_a_folder_or_listed(folder: Path, record: dict[str, Any], names: list[str], fps: float) -> None:
    """Frames of a folder are in the order of their numbers; a list has its own order, and may have a rate."""
    [sample] = _open(folder, record)

    assert sample.videos == (Video(tuple(folder / name for name in names), fps),)


def test_images_and_videos_are_placed_in_their_order(folder: Path) -> None:
    """Each kind of placeholder takes the next one of its kind; videos without one follow the images."""
    placed = [{"from": "human", "value": "<video> or <image>?<video>"}, SHARED[1]]
    videos, images = ["clip.gif", FRAMES], ["still.png"]

    [sample] = _open(folder, {"conversations": placed, "videos": videos, "images": images})
    first, second = Video(folder / "clip.gif"), Video(tuple(folder / name for name in FRAMES))
    assert sample.turns[0].content == (first, " or ", folder / "still.png", "?", second)

    [sample] = _open(folder, {"query": PROMPT, "response": "A dot.", "videos": videos, "images": images})
    assert sample.turns[0].content == (folder / "still.png", first, second, PROMPT)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": CHAT}, "`<video>` number 1 has no video"),
        ({"messages": CHAT, "videos": ["clip.gif", "clip.gif"]}, "2 videos and 1 places"),
        ({"messages": CHAT, "videos": ["no.gif"]}, "the video `no.gif` is missing"),
        ({"messages": CHAT, "videos": ["../clip.gif"]}, "outside of the folder"),
        ({"messages": CHAT, "videos": ["https://x/clip.mp4"]}, "the video is a URL"),
        ({"messages": CHAT, "videos": [5]}, "a video is `5`"),
        ({"messages": CHAT, "videos": [[]]}, "a video has no frame"),
        ({"messages": CHAT, "videos": ["empty"]}, "the folder `empty` has no image"),
        ({"messages": CHAT, "videos": ["train.jsonl"]}, "the video `train.jsonl` is neither an image"),
        ({"messages": CHAT, "videos": ["clip.gif"], "fps": [1, 2]}, "2 values in `fps` and 1 videos"),
        ({"messages": _parts(video="clip.gif", fps=0)}, "`fps` is 0"),
        ({"messages": _parts(video="clip.gif", nframes=True)}, "`num_frames` is True"),
        ({"messages": _parts(video="clip.gif", fps=1.0, nframes=2)}, "has `fps` and `num_frames`"),
        ({"messages": _parts(video="clip.gif", max_pixels=9)}, "unknown part of type `video`"),
        ({"messages": [{"role": "system", "content": [CLIP]}, *_parts(video="clip.gif")]}, "has a video"),
    ],
)
def test_invalid_videos_are_errors(folder: Path, record: dict[str, Any], message: str) -> None:
    """The error has the file and the line."""
    (folder / "empty").mkdir()

    with pytest.raises(DatasetError, match=rf"(?s)train\.jsonl` line 1.*{message}"):
        _open(folder, record)


def test_a_written_set_has_the_same_videos(folder: Path, tmp_path: Path) -> None:
    """Files, frames and settings are kept, also those of videos inside of records."""
    source = _open(
        folder,
        {"id": "a", "messages": _parts(video="clip.gif", nframes=2)},
        {"id": "b", "messages": CHAT, "videos": [FRAMES], "fps": 2.5},
    )
    content = (folder / "clip.gif").read_bytes()
    inside = Turn("user", (Video(EmbeddedImage("x", content), fps=1.5), PROMPT))
    embedded = type(source.samples[0])("c", (inside, ANSWER))

    written = write_set(SampleSet(source.path, (*source.samples, embedded)), tmp_path / "out")

    assert [sample.content() for sample in written] == [sample.content() for sample in (*source.samples, embedded)]
    assert [video.fps for sample in written for video in sample.videos] == [None, 2.5, 1.5]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
    assert len(written.fingerprints) == 4


def test_a_manifest_has_videos(folder: Path) -> None:
    """Keys of a file and of a list of frames; other combinations are errors."""
    [sample] = _open(
        folder, {"id": "a", "messages": _parts(video=FRAMES, fps=2.0, num_frames=2)}, name="manifest.jsonl"
    )
    assert sample.videos[0] == Video(tuple(folder / name for name in FRAMES), 2.0, 2)

    for video, message in (
        ({"video": FRAMES, "sha256": "0" * 64}, "`sha256` is that of a file"),
        ({"video": "clip.gif", "sha256": "0" * 64}, "differs from its SHA-256"),
        ({"video": "clip.gif", "fps": 1.0, "num_frames": 2}, "give one of them"),
        ({"video": "clip.gif", "fps": -1.0}, "greater than 0"),
    ):
        with pytest.raises(DatasetError, match=message):
            _open(folder, {"id": "a", "messages": _parts(**video)}, name="manifest.jsonl")


def test_statistics_count_videos_and_frames(folder: Path) -> None:
    """Frames of files are counted, too."""
    found = set_statistics(
        _open(folder, {"messages": CHAT, "videos": ["clip.gif"]}, {"messages": CHAT, "video": FRAMES})
    )

    assert (found["with_video"], found["videos"], found["with_image"]) == (2, 2, 0)
    assert found["frames_of_videos"] == {"smallest": 3, "median": 3, "largest": 3}
