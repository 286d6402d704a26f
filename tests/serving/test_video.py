"""Videos in chat completions: parts, limits, reasons, and answers of a worker."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import DatasetError
from mcpmq.families import family_named
from mcpmq.serving.backend import NO_FAMILY_VIDEO, NO_GGUF_VIDEO, no_video_in
from mcpmq.serving.chat_request import parse_chat
from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.serving.payload import make_payload
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.served_model import NO_VISION_ENCODER, EngineFacts
from mcpmq.serving.video import open_part
from mcpmq.system.video_file import DECODER_HINT, EXTRACT_HINT
from tests.browser import CHROMIUM, REASON, browser
from tests.serving.conftest import serving
from tests.serving.hostile_requests import KINDS, Target, hostile_videos
from tests.serving.requests import CHAT, Served, chat, data_url, error_message, image_part, png

WORKER = EngineFacts("ONNX Runtime", 512, True, no_video="")
MP4 = b"\0\0\0\x18ftypisom" + bytes(40)


def animation(count: int = 6, milliseconds: int = 500, side: int = 56) -> bytes:
    """Return a WebP file of noise."""
    noise = np.random.default_rng(4).integers(0, 256, (count, side, side, 3), np.uint8)
    first, *rest = map(Image.fromarray, noise)
    stream = BytesIO()
    first.save(stream, "WEBP", save_all=True, append_images=rest, duration=milliseconds, lossless=True)
    return stream.getvalue()


def mp4(count: int = 6) -> bytes:
    """Return an MP4 file of noise at two frames a second."""
    av: Any = pytest.importorskip("av")
    stream = BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=2)
        video.width = video.height = 64
        for noise in np.random.default_rng(5).integers(0, 256, (count, 64, 64, 3), np.uint8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def video_part(content: bytes, media_type: str = "video/mp4") -> dict[str, Any]:
    """Return the part of a message with a video."""
    return {"type": "video_url", "video_url": {"url": data_url(content, media_type)}}


def _payload(body: dict[str, Any], engine: EngineFacts = WORKER, limits: Limits = LIMITS) -> list[Any]:
    messages: list[Any] = make_payload(parse_chat(json.dumps(body).encode(), limits), limits, engine)["messages"]
    return messages


def test_the_worker_gets_the_file_and_its_sampling() -> None:
    """In the order of the parts; the options of the request are those of every video."""
    parts = video_part(animation(), "video/webp"), "and", image_part(png()), video_part(animation(2))

    [message] = _payload(chat(*parts, media_io_kwargs={"video": {"num_frames": 4}}))

    assert [part["type"] for part in message["content"]] == ["video_url", "text", "image_url", "video_url"]
    first, second = (part for part in message["content"] if part["type"] == "video_url")
    assert (first["num_frames"], first["fps"], second["num_frames"]) == (4, None, 4)
    opened = open_part(first, 1, LIMITS)
    assert (opened.count, opened.fps, opened.sample_count, opened.is_sampled) == (6, 2.0, 4, False)
    assert [frame.size for frame in opened.read([0, 5])] == [(56, 56)] * 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1/clip.mp4", "a video is not a data URL `data:video/...;base64,...`; URLs are not fetched"),
        ("file:///clip.mp4", "a video is not a data URL"),
        (data_url(b"GIF89a"), "a video is not a data URL"),
        ("data:video/mp4;base64,%%%", "the data URL of a video is not base64"),
    ],
)
def test_other_urls_are_errors(url: str, message: str) -> None:
    """As those of images: nothing is fetched, and no file is read."""
    with pytest.raises(RequestError) as caught:
        _payload(chat({"type": "video_url", "video_url": {"url": url}}))

    assert caught.value.status == 400
    assert message in str(caught.value)


def test_the_number_of_videos_is_limited() -> None:
    """In all messages together."""
    part = video_part(animation(2))
    with pytest.raises(RequestError, match="3 videos, more than 2"):
        _payload(chat(part, part, part))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_frames": 4, "fps": 1}, "not both"), ({"num_frames": 0}, "num_frames"), ({"backend": "x"}, "backend")],
)
def test_wrong_sampling_is_an_error(options: dict[str, Any], message: str) -> None:
    """Both settings, a number below 1, and an unknown setting."""
    with pytest.raises(RequestError, match=message):
        _payload(chat("Hi", media_io_kwargs={"video": options}))


@pytest.mark.parametrize(
    ("content", "limits", "status", "message"),
    [
        (animation(), replace(LIMITS, video_pixels=5 * 56 * 56), 413, "more than 15,680 pixels in all frames"),
        (animation(3, 16_000_000), LIMITS, 413, "video 1 is longer than 3600 seconds"),
        (animation(), replace(LIMITS, video_file_frames=5), 413, "video 1 has more than 5 frames"),
        (animation()[:300], LIMITS, 400, f"; {EXTRACT_HINT}"),
        (b"text", LIMITS, 400, "video 1 is neither an image of the formats"),
        (MP4, LIMITS, 400, "video 1 cannot be read"),
    ],
)
def test_a_video_that_cannot_be_read_is_an_error(content: bytes, limits: Limits, status: int, message: str) -> None:
    """Too many pixels, frames or seconds, a damaged file, and another kind of file; without paths."""
    with pytest.raises(RequestError) as caught:
        open_part(video_part(content), 1, limits)

    assert caught.value.status == status
    assert message in str(caught.value)
    assert "/" not in str(caught.value)


def test_pixels_of_a_container_are_limited() -> None:
    """They are summed while frames are decoded."""
    with pytest.raises(RequestError, match="more than 20,000 pixels in all frames"):
        open_part(video_part(mp4()), 1, replace(LIMITS, video_pixels=20_000))
    assert open_part(video_part(mp4()), 1, LIMITS).count == 6


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is that of commands."""
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(RequestError, match="`av` is not installed") as caught:
        open_part(video_part(MP4), 1, LIMITS)
    assert str(caught.value).endswith(f"; {DECODER_HINT}")


def test_sampled_frames_are_limited() -> None:
    """The processor of a model may sample all frames."""
    opened = open_part(video_part(animation()), 1, replace(LIMITS, video_frames=5))

    assert len(list(opened.read(range(5)))) == 5
    with pytest.raises(DatasetError, match="6 frames are sampled, more than 5"):
        opened.read(range(6))


def test_models_without_videos_have_their_reason() -> None:
    """llama.cpp, a family without videos, and a text model."""
    assert no_video_in(family_named("minicpm-v-2.6")) == no_video_in(family_named("qwen3-vl")) == ""
    assert no_video_in(family_named("gemma-3")) == NO_FAMILY_VIDEO
    assert no_video_in(family_named("minicpm3")) == NO_VISION_ENCODER
    with pytest.raises(RequestError, match=f"messages with videos are not supported: {NO_GGUF_VIDEO}"):
        _payload(chat(video_part(animation())), replace(WORKER, no_video=NO_GGUF_VIDEO))


@pytest.fixture(scope="module")
def onnx(tiny_exports: list[Artifact]) -> Iterator[Served]:
    """A server of a model with videos in ONNX Runtime."""
    with serving(tiny_exports[1]) as found:
        yield found


@pytest.mark.parametrize("name", ["clip.webp", "clip.mp4"])
def test_a_server_answers_about_a_video(name: str, onnx: Served, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The prompt has the tokens of a sample with the same file; options sample fewer frames."""
    (tmp_path / name).write_bytes(content := mp4() if name.endswith("mp4") else animation())
    processor = Checkpoint.open(tiny_checkpoint).family.open_processor(tiny_checkpoint)
    expected = [
        processor.encode_turns("one", [Turn("user", (video, "What?")), Turn("assistant", ("No.",))]).answer_start
        for video in (Video(tmp_path / name), Video(tmp_path / name, num_frames=2))
    ]

    body = chat(video_part(content), "What?")
    answers = [
        onnx.client.post(CHAT, json=body | options).json()
        for options in ({}, {"media_io_kwargs": {"video": {"num_frames": 2}}})
    ]

    assert [answer["usage"]["prompt_tokens"] for answer in answers] == expected
    assert expected[0] > expected[1]


def test_errors_of_the_decoder_reach_the_client(onnx: Served) -> None:
    """With their status; the server answers afterwards, and lists videos and their limit."""
    contents = b"text", animation(3, 16_000_000)
    responses = [onnx.client.post(CHAT, json=chat(video_part(content), "What?")) for content in contents]
    [model] = onnx.client.get("/v1/models").json()["data"]

    assert [response.status_code for response in responses] == [400, 413]
    assert EXTRACT_HINT in error_message(responses[0])
    assert onnx.client.post(CHAT, json=chat("Hi")).status_code == 200
    assert (model["meta"]["video"], model["meta"]["limits"]["videos"]) == (True, 2)


def test_hostile_videos_change_nothing(onnx: Served) -> None:
    """The engine is not started again, and an ordinary request has the same answer."""
    before, starts, random = onnx.client.post(CHAT, json=chat("Hi")).json(), onnx.engine.starts, Random(3)
    target = Target(onnx.client, png(), 9)

    responses = [response for _ in range(25) for response in hostile_videos(random, target)]

    assert {response.status_code for response in responses} <= KINDS[hostile_videos][1]
    assert all(error_message(one) for one in responses if one.status_code != 200)
    assert onnx.client.post(CHAT, json=chat("Hi")).json()["choices"] == before["choices"]
    assert onnx.engine.starts == starts


def test_a_server_of_llama_cpp_names_its_reason(served: Served) -> None:
    """The model has videos in other formats."""
    response = served.client.post(CHAT, json=chat(video_part(animation()), "What?"))

    assert (response.status_code, NO_GGUF_VIDEO in error_message(response)) == (400, True)


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_the_page_sends_videos(onnx: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file appears as a preview, and is answered."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "clip.mp4").write_bytes(mp4())
    with browser(folder) as page:
        page.open(str(onnx.client.base_url))
        page.wait("document.title !== 'mcpmq'")
        page.choose("#file", folder / "clip.mp4")
        page.wait("document.querySelectorAll('#previews video').length === 1")
        page.click("#ask")
        page.wait("document.querySelectorAll('.turn.assistant .quiet').length === 1")
        assert page.evaluate("document.querySelectorAll('.turn.user video').length") == 1
        assert not page.errors
