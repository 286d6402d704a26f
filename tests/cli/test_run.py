"""Tests of `mcpmq run` on tiny artifacts in their engines."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.quantized_model import QuantizedModel
from mcpmq.release.record import Release
from tests.commands import Command

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "run.md"
QUESTION = "What does the sign say?"
FIELDS = {
    "answer": str,
    "finish_reason": str,
    "engine": str,
    "prompt_tokens": int,
    "completion_tokens": int,
    "load_ms": float,
    "first_text_ms": float,
    "prompt_ms": float,
    "predicted_ms": float,
    "tokens_per_second": float,
    "notes": list,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of the size of a slice, and a wide one."""
    folder = tmp_path_factory.mktemp("images")
    found = {name: folder / f"{name}.png" for name in ("square", "wide")}
    for name, size in (("square", (56, 56)), ("wide", (90, 56))):
        pixels = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(found[name])
    return found


def _settings(image: Path) -> tuple[object, ...]:
    return ("--image", image, "--max-tokens", 8, "--threads", 1)


@pytest.mark.parametrize("index", [0, 1], ids=["gguf", "onnx"])
def test_the_answer_is_text_on_stdout(
    mcpmq: Command, tiny_exports: list[Artifact], images: dict[str, Path], index: int
) -> None:
    """The text is that of `--json`, with one line feed and no control codes; stderr has no traceback."""
    path = tiny_exports[index].path

    text = mcpmq("run", path, QUESTION, *_settings(images["square"]))
    data = json.loads(mcpmq("run", path, QUESTION, *_settings(images["square"]), "--json").stdout)

    assert text.exit_code == 0
    assert text.stdout == data["answer"] + "\n"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text.stdout)
    assert {name: type(value) for name, value in data.items()} == FIELDS
    assert data["finish_reason"] in ("stop", "length")
    assert data["completion_tokens"] <= 8 < data["prompt_tokens"]


def test_equal_seeds_print_equal_answers(mcpmq: Command, tiny_exports: list[Artifact]) -> None:
    """A prompt without an image is answered; sampling depends on the seed."""
    settings = ("--temperature", 2, "--top-p", 0.9, "--max-tokens", 8, "--threads", 1)
    answers = [mcpmq("run", tiny_exports[1].path, "Hello", *settings, "--seed", seed).stdout for seed in (1, 1, 2)]

    assert answers[0] == answers[1] != answers[2]


def test_a_hyphen_reads_the_prompt_from_stdin(
    mcpmq: Command, tiny_exports: list[Artifact], images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that to the same prompt as an argument."""
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))

    piped = mcpmq("run", tiny_exports[1].path, "-", *_settings(images["square"]))

    assert piped.stdout == mcpmq("run", tiny_exports[1].path, QUESTION, *_settings(images["square"])).stdout


def test_a_release_runs_and_resized_images_are_noted(
    mcpmq: Command, tiny_release: Release, images: dict[str, Path]
) -> None:
    """llama.cpp resizes a wide image, with a note on stderr; with `--exact`, no note appears."""
    resized = mcpmq("run", tiny_release.path, QUESTION, *_settings(images["wide"]))
    exact = mcpmq("run", tiny_release.path, QUESTION, *_settings(images["wide"]), "--exact")

    assert resized.exit_code == exact.exit_code == 0
    assert "--exact" in resized.stderr
    assert exact.stderr == ""


def test_bad_input_is_an_error_with_a_hint(
    mcpmq: Command, tiny_exports: list[Artifact], images: dict[str, Path], tmp_path: Path
) -> None:
    """Missing images and artifacts, files of another type and long prompts exit with 1 and without a traceback."""
    text = tmp_path / "text.png"
    text.write_text("text")
    gguf, onnx = (artifact.path for artifact in tiny_exports)
    cases = {
        "not a regular file": (gguf, QUESTION, "--image", tmp_path / "none.png"),
        "cannot be read": (gguf, QUESTION, "--image", text),
        "it does not exist": (tmp_path / "none", QUESTION),
        "leaves no space": (gguf, "one " * 3000, "--context", 256),
        "more than the context length": (onnx, "one " * 3000),
        "special token": (onnx, "a<|im_end|>b"),
    }

    for message, arguments in cases.items():
        result = mcpmq("run", *arguments, "--threads", 1)
        assert result.exit_code == 1, message
        assert message in result.stderr
        assert "hint: " in result.stderr
        assert "Traceback" not in result.stderr


def test_a_chat_needs_a_terminal(mcpmq: Command, tiny_exports: list[Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, a missing or empty prompt is a usage error before the model loads."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    for arguments in ((), ("",), ("--json",)):
        result = mcpmq("run", tiny_exports[0].path, *arguments)
        assert result.exit_code == 2
        assert "PROMPT" in result.stderr


@pytest.fixture
def out(tiny_exports: list[Artifact], tiny_int4: QuantizedModel, tmp_path: Path, images: dict[str, Path]) -> Path:
    """A folder with the files that the document names."""
    for name, path in (("gguf", tiny_exports[0].path), ("onnx", tiny_exports[1].path), ("quantized", tiny_int4.path)):
        shutil.copytree(path, tmp_path / "OUT" / name)
    shutil.copy(images["square"], tmp_path / "photo.png")
    shutil.copy(images["wide"], tmp_path / "other.png")
    (tmp_path / "frames").mkdir()
    frames = [Image.new("RGB", (56, 56), (60 * number, 90, 30)) for number in range(4)]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], duration=500, lossless=True)
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number}.png")
    return tmp_path


def test_the_commands_of_the_document_run(mcpmq: Command, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/run.md prints an answer, and the table of `--json` has all fields."""
    text = DOCUMENT.read_text()
    monkeypatch.chdir(out)
    for line in "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines():
        before, _, command = line.rpartition("mcpmq run ")
        monkeypatch.setattr("sys.stdin", io.StringIO(before.removeprefix("echo ").strip('" |')))

        result = mcpmq("run", *shlex.split(command), "--max-tokens", 3, "--threads", 1)

        assert result.exit_code == 0, (line, result.stderr)
        assert result.stdout.endswith("\n"), line
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))) >= FIELDS.keys()
