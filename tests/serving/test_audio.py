"""Audio in chat completions: parts of requests, errors with reasons, and answers of engines."""

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.export import export
from mcpmq.families import family_named
from mcpmq.families.minicpmo import MINICPM_O_2_6, NO_GGUF_AUDIO
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.serving.audio import decode_part
from mcpmq.serving.backend import no_audio_in
from mcpmq.serving.chat_request import parse_chat
from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.serving.payload import make_payload
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.served_model import NO_AUDIO_ENCODER, EngineFacts
from tests.audio_tools import noise, wav_bytes
from tests.browser import CHROMIUM, REASON, Page, browser
from tests.serving.conftest import serving
from tests.serving.requests import CHAT, Served, chat, error_message, image_part, png
from tests.tiny_families import MINICPM_O_2_6 as TINY

LLAMA_CPP = EngineFacts("llama.cpp", 512, True, family=family_named("qwen2.5-omni"), no_audio="")


def audio_part(seconds: float = 0.4, rate: int = 16_000, **fields: Any) -> dict[str, Any]:
    """Return the part of a message with a WAV file of noise."""
    data = b64encode(wav_bytes(noise(seconds)[:, None], rate)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav", **fields}}


def _payload(body: dict[str, Any], engine: EngineFacts = LLAMA_CPP, limits: Limits = LIMITS) -> list[Any]:
    parts: list[Any] = make_payload(parse_chat(json.dumps(body).encode(), limits), limits, engine)["messages"]
    return parts


def test_the_engine_gets_mono_samples_at_16_khz() -> None:
    """In the order of the parts, between images and texts; another rate is converted."""
    [message] = _payload(chat("Listen", audio_part(rate=8000), image_part(png()), "and look"))

    kinds = [part["type"] for part in message["content"]]
    assert [kind for kind in kinds if kind != "text"] == ["input_audio", "image_url"]
    sound = next(part for part in message["content"] if part["type"] == "input_audio")["input_audio"]
    assert sound["format"] == "wav"
    samples = decode_part(sound["data"], 1)
    assert samples.stored.encoding == "32-bit float"
    assert len(samples.samples) == 2 * len(noise(0.4))


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        (audio_part(format="mp3"), 400, "messages.0.content.0.input_audio.input_audio.format"),
        (audio_part(data="%%%"), 400, "audio 1 is not base64"),
        (audio_part(data=b64encode(b"ID3" + bytes(40)).decode()), 400, "audio 1 is MP3, neither WAV nor FLAC"),
        (audio_part(data=b64encode(wav_bytes(noise(0.4)[:, None])[:200]).decode()), 400, "audio 1 is truncated"),
        (audio_part(seconds=1.2), 413, "more than 1 seconds of audio"),
    ],
)
def test_audio_that_cannot_be_read_is_an_error(part: dict[str, Any], status: int, message: str) -> None:
    """Another format, no base64, a damaged file, and more seconds than permitted."""
    with pytest.raises(RequestError) as caught:
        _payload(chat(part, "What?"), limits=replace(LIMITS, audio_seconds=1.0))

    assert caught.value.status == status
    assert message in f"{caught.value.param} {caught.value}"


def test_the_number_of_audios_is_limited() -> None:
    """In all messages together; seconds are summed."""
    body = {"messages": [{"role": "user", "content": [audio_part(0.6)]}] * 2}
    with pytest.raises(RequestError, match="2 audios, more than 1"):
        _payload(body, limits=replace(LIMITS, audios=1))
    with pytest.raises(RequestError, match="more than 1 seconds"):
        _payload(body, limits=replace(LIMITS, audio_seconds=1.0))
    assert len(_payload(body)) == 2


def test_models_without_audio_have_their_reason(tiny_exports: list[Artifact]) -> None:
    """A model without an encoder, and a GGUF file of MiniCPM-o without the projector of llama.cpp."""
    vision = tiny_exports[0]
    recipe = {**vision.manifest.recipe, "gguf_audio": "glma"}
    manifest = vision.manifest.model_copy(update={"recipe": recipe})

    assert no_audio_in(vision, family_named(vision.manifest.family)) == NO_AUDIO_ENCODER
    assert no_audio_in(vision, MINICPM_O_2_6) == NO_GGUF_AUDIO
    assert no_audio_in(replace(vision, manifest=manifest), MINICPM_O_2_6) == ""
    with pytest.raises(RequestError, match=f"not supported: {NO_AUDIO_ENCODER}"):
        _payload(chat(audio_part(), "What?"), replace(LLAMA_CPP, no_audio=NO_AUDIO_ENCODER))


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a model with audio in ONNX Runtime."""
    folder = tmp_path_factory.mktemp("omni")
    plan = make_plan(Checkpoint.open(TINY.build(folder / "tiny")), Recipe.load("full"))
    with serving(export(quantize(plan, folder / "codes"), "onnx", folder / "onnx")) as found:
        yield found


def test_a_server_answers_about_audio(omni: Served) -> None:
    """The prompt has the tokens of the audio, and the model lists audio and its limits."""
    [model] = omni.client.get("/v1/models").json()["data"]
    answers = [omni.client.post(CHAT, json=chat(*parts, "What?")).json() for parts in ((audio_part(),), ())]

    assert model["meta"]["audio"]
    assert model["meta"]["limits"]["audio_seconds"] == LIMITS.audio_seconds
    with_audio, without = (answer["usage"]["prompt_tokens"] for answer in answers)
    assert with_audio == without + 10 + 2 + 1  # tokens of 0.4 seconds, tags, line feed
    assert answers[0]["choices"][0]["message"]["content"]
    wrong = omni.client.post(CHAT, json=chat(audio_part(data="UklGRg=="), "What?"))
    assert (wrong.status_code, "audio 1" in error_message(wrong)) == (400, True)


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_the_page_sends_files_and_recordings(omni: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A WAV file and a recording of the microphone appear as previews, and are answered together."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "noise.wav").write_bytes(wav_bytes(noise(0.5)[:, None]))
    with browser(folder) as page:
        page.open(str(omni.client.base_url))
        page.wait("document.title !== 'mcpmq'")
        _send_audio(page, folder / "noise.wav")
        page.wait("document.querySelectorAll('.turn.assistant .quiet').length === 1")
        assert page.evaluate("document.querySelectorAll('.turn.user audio').length") == 2
        assert not page.errors


def _send_audio(page: Page, file: Path) -> None:
    page.choose("#audio-file", file)
    page.wait("document.querySelectorAll('#previews audio').length === 1")
    page.click("#record")
    page.wait("document.getElementById('record').textContent === 'Stop recording'")
    page.evaluate("new Promise((done) => setTimeout(done, 400))")
    page.click("#record")
    page.wait("document.querySelectorAll('#previews audio').length === 2")
    page.click("#ask")
