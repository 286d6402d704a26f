"""Samples with audio: manifests, records of training sets, hashes, counts and written sets."""

import base64
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcpmq.dataset import Audio, EmbeddedImage, Sample, SampleSet
from mcpmq.dataset.records import parse_record
from mcpmq.dataset.statistics import set_statistics
from mcpmq.dataset.writing import write_set
from mcpmq.errors import DatasetError
from tests.audio_tools import wav_bytes, write_wav

ANSWER = {"role": "assistant", "content": "two"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two audios and an image."""
    write_wav(tmp_path / "a.wav", 0.5)
    write_wav(tmp_path / "b.wav", 1.25, seed=1, rate=8000)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    return tmp_path


def _open(folder: Path, *lines: dict[str, Any]) -> SampleSet:
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return SampleSet.open(folder)


def _parts(sample: Sample) -> list[Any]:
    """Return the prompt's content, with names for files."""
    named = []
    for part in sample.turns[0].content:
        kind, file = ("audio", part.source) if isinstance(part, Audio) else ("image", part)
        named.append(file if isinstance(file, str) else f"{kind} {Path(file.name).name}")  # type: ignore[union-attr]
    return named


def test_a_line_may_have_an_audio(folder: Path) -> None:
    """It precedes the prompt, after the image if any."""
    digest = sha256((folder / "a.wav").read_bytes()).hexdigest()
    plain = {"id": "1", "audio": "a.wav", "audio_sha256": digest, "prompt": "How many?", "answer": "two"}
    both = {"id": "2", "audio": "b.wav", "image": "red.png", "prompt": "Which?", "answer": "red"}

    first, second = _open(folder, plain, both)

    assert _parts(first) == ["audio a.wav", "How many?"]
    assert _parts(second) == ["image red.png", "audio b.wav", "Which?"]
    assert (first.images, second.audio) == ((), (Audio(folder / "b.wav"),))


def test_messages_mix_texts_images_and_audio(folder: Path) -> None:
    """In the order of the parts."""
    parts = (("audio", "a.wav"), ("image", "red.png"), ("text", "and"), ("audio", "b.wav"))
    content = [{"type": kind, kind: value} for kind, value in parts]

    [sample] = _open(folder, {"id": "1", "messages": [{"role": "user", "content": content}, ANSWER]})

    assert _parts(sample) == ["audio a.wav", "image red.png", "and", "audio b.wav"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"audio": "c.wav"}, "the audio `c.wav` is missing"),
        ({"audio": "../a.wav"}, "is outside of the folder"),
        ({"audio": "red.png"}, "the audio `red.png` is neither WAV nor FLAC"),
        ({"audio": "a.wav", "audio_sha256": "0" * 64}, "the audio `a.wav` differs from its SHA-256"),
        ({"audio_sha256": "0" * 64}, "`audio_sha256` without `audio`"),
    ],
)
def test_invalid_audio_is_an_error_with_the_line(line: dict[str, str], message: str, folder: Path) -> None:
    """When the set is opened."""
    with pytest.raises(DatasetError, match=f"line 1: .*{message}"):
        _open(folder, {"id": "1", "prompt": "How many?", "answer": "two", **line})


def test_only_prompts_have_audio(folder: Path) -> None:
    """A system prompt with audio is an error."""
    system = {"role": "system", "content": [{"type": "audio", "audio": "a.wav"}]}
    with pytest.raises(DatasetError, match="a message of `system` has audio"):
        _open(folder, {"id": "1", "messages": [system, {"role": "user", "content": "x"}, ANSWER]})


def test_hashes_and_duplicates_depend_on_audio(folder: Path) -> None:
    """Samples that differ in audio are different; equal ones are duplicates, and overlap with another set is found."""
    lines = [{"id": name, "audio": f"{name[0]}.wav", "prompt": "How?", "answer": "so"} for name in ("a", "b", "a2")]
    samples = _open(folder, *lines)
    digests = [sha256((folder / name).read_bytes()).hexdigest()[:16] for name in ("a.wav", "b.wav")]

    assert samples.duplicates == (("a2", "a"),)
    assert samples.fingerprints == tuple(sorted(digests))
    assert SampleSet(folder, samples.samples[:1]).sha256 != SampleSet(folder, samples.samples[1:2]).sha256
    with pytest.raises(DatasetError, match="shares 1 images"):
        samples.check_disjoint("other", digests[:1])


def test_statistics_count_durations_and_conversions(folder: Path) -> None:
    """Seconds, and the audios that are mixed to mono or resampled to 16 kHz."""
    (folder / "c.wav").write_bytes(wav_bytes([[0.1, 0.2]] * 64_000))
    lines = [{"id": name, "audio": f"{name}.wav", "prompt": "How?", "answer": "so"} for name in "abc"]
    found = set_statistics(_open(folder, *lines, {"id": "text", "prompt": "x", "answer": "y"}))

    assert found["with_audio"] == found["audios"] == 3
    assert found["audio_seconds"] == {"smallest": 0, "median": 2, "largest": 4}
    assert (found["audios_mixed_to_mono"], found["audios_resampled_to_16_khz"]) == (1, 1)


def test_a_written_set_has_every_audio_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Named by its hash, also an audio that was stored inside of a record; the samples are the same."""
    lines = [{"id": str(number), "audio": "a.wav", "prompt": str(number), "answer": "so"} for number in range(2)]
    samples = _open(folder, *lines)
    out = tmp_path_factory.mktemp("out") / "set"

    written = write_set(samples, out)

    assert written.sha256 == samples.sha256
    digest = sha256((folder / "a.wav").read_bytes()).hexdigest()
    assert [file.name for file in (out / "audio").iterdir()] == [f"{digest[:16]}.wav"]


FILES = ["a.wav", "b.wav"]
CONTENT = wav_bytes([[0.25]] * 400)
BASE64 = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"query": "<audio>How?", "response": "so", "audios": ["a.wav"]}, ["audio a.wav", "How?"]),
        ({"query": "How?", "response": "so", "audio": "a.wav"}, ["audio a.wav", "How?"]),
        (
            {"query": "<image>of <audio>and <audio>?", "response": "so", "image": "i.png", "audios": FILES},
            ["image i.png", "of ", "audio a.wav", "and ", "audio b.wav", "?"],
        ),
        ({"instruction": "<audio>How?", "output": "so", "audios": ["a.wav"]}, ["audio a.wav", "How?"]),
    ],
)
def test_records_name_audio_by_placeholders(record: dict[str, Any], expected: list[str]) -> None:
    """ms-swift and LLaMA-Factory write `<audio>` and a list `audios`."""
    content = parse_record(record, 1, "record").turns[0].content

    names = [part if isinstance(part, str) else f"{type(part).__name__[:5].lower()} {part.name}" for part in content]  # type: ignore[union-attr]
    assert names == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{BASE64}"}},
        {"type": "audio", "audio": {"bytes": CONTENT, "path": "x.wav"}},
    ],
)
def test_records_contain_audio(part: dict[str, Any], tmp_path: Path) -> None:
    """OpenAI's parts and the column type of Hugging Face datasets."""
    record = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "How?"}]}, ANSWER]}

    [audio] = parse_record(record, 1, "record").open(tmp_path, "record").audio

    assert isinstance(audio.source, EmbeddedImage)
    assert audio.source.content == CONTENT


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "<audio>?", "response": "so"}, "`<audio>` number 1 has no audio"),
        ({"query": "<audio>?", "response": "so", "audios": ["a", "b"]}, "2 audios and 1 places"),
        ({"query": "?", "response": "so", "audios": ["https://x.y/a.wav"]}, "the audio is a URL"),
        ({"query": "?", "response": "so", "audio": 3}, "an audio is `3`"),
        ({"query": "?", "response": "so", "audio": {"data": "*", "format": "wav"}}, "an audio is not valid base64"),
    ],
)
def test_records_with_wrong_audio_are_rejected(record: dict[str, Any], message: str) -> None:
    """The error has the place of the record."""
    with pytest.raises(DatasetError, match=f"record: {message}"):
        parse_record(record, 1, "record")
