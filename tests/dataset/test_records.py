"""Records of training sets in all accepted formats."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcpmq.dataset import EmbeddedImage, ReadOptions, SampleSet, Turn
from mcpmq.errors import DatasetError

PROMPT = "What color?"
ANSWER = Turn("assistant", ("Red.",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two images."""
    for color in ("red", "blue"):
        Image.new("RGB", (28, 14), color).save(tmp_path / f"{color}.png")
    return tmp_path


def _open(folder: Path, *records: Any, options: ReadOptions | None = None) -> SampleSet:
    file = folder / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return SampleSet.open(file, options or ReadOptions())


def _data_url(folder: Path) -> str:
    return "data:image/png;base64," + base64.b64encode((folder / "red.png").read_bytes()).decode()


CHAT = [{"role": "user", "content": f"<image>{PROMPT}"}, {"role": "assistant", "content": "Red."}]
SHARED = [{"from": "human", "value": f"<image>{PROMPT}"}, {"from": "gpt", "value": "Red."}]
PARTS = [
    {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": PROMPT}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
]
OPENAI = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "red.png", "detail": "low"}},
            {"type": "text", "text": PROMPT},
        ],
    },
    {"role": "assistant", "content": "Red."},
]
TRL = [
    {
        "role": "user",
        "content": [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": PROMPT, "index": None}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "Red.", "index": None}]},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "images": ["red.png"]},
        {"messages": PARTS},
        {"messages": OPENAI},
        {"messages": TRL, "images": [{"bytes": None, "path": "red.png"}]},
        {"id": "7", "image": "red.png", "conversations": SHARED},
        {"conversations": SHARED, "images": ["red.png"], "source": "web"},
        {"conversations": CHAT, "image": {"<image>": "red.png"}},
        {"query": f"<image>{PROMPT}", "response": "Red.", "images": ["red.png"]},
        {"query": PROMPT, "response": "Red.", "images": ["red.png"], "history": [], "system": ""},
        {"instruction": PROMPT, "input": "", "output": "Red.", "images": ["red.png"]},
        {"question": PROMPT, "answer": "Red.", "image": "red.png"},
        {"texts": [{"user": PROMPT, "assistant": "Red.", "source": "web"}], "images": ["red.png"]},
        {"prompt": PROMPT, "completion": "Red.", "image": "file://red.png", "tags": None},
    ],
)
def test_every_format_gives_the_same_conversation(folder: Path, record: dict[str, Any]) -> None:
    """One image, one prompt and one answer; a record without an id has its number."""
    [sample] = _open(folder, record)

    assert sample.turns == (Turn("user", (folder / "red.png", PROMPT)), ANSWER)
    assert sample.id == record.get("id", "1")


def test_placeholders_are_replaced_in_their_order(folder: Path) -> None:
    """Texts around placeholders are unchanged; images of several turns follow one another."""
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\n<image>\nAny red?"},
        {"from": "gpt", "value": "One."},
        {"from": "human", "value": "And <image>?"},
        {"from": "gpt", "value": "Red."},
    ]

    [sample] = _open(folder, {"conversations": turns, "images": ["red.png", "blue.png", "red.png"]})

    red, blue = folder / "red.png", folder / "blue.png"
    assert sample.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", (red, "\n", blue, "\nAny red?")),
        Turn("assistant", ("One.",)),
        Turn("user", ("And ", red, "?")),
        ANSWER,
    )


def test_named_placeholders_have_the_image_of_their_name(folder: Path) -> None:
    """MiniCPM-V trains on numbered placeholders, which may be in any order."""
    turns = [{"role": "user", "content": "<image_01> or <image_00>?"}, {"role": "assistant", "content": "Red."}]

    [sample] = _open(folder, {"image": {"<image_00>": "red.png", "<image_01>": "blue.png"}, "conversations": turns})

    assert sample.turns[0].content == (folder / "blue.png", " or ", folder / "red.png", "?")


def test_history_and_system_prompt_precede_the_query(folder: Path) -> None:
    """The pairs of `history` are earlier turns."""
    record = {"query": PROMPT, "response": "Red.", "history": [["Hi <image>", "Hello"]], "system": "Be brief."}

    [sample] = _open(folder, record | {"images": ["red.png"]})

    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert sample.turns[1].content == ("Hi ", folder / "red.png")


def test_an_instruction_and_its_input_are_one_prompt(folder: Path) -> None:
    """They are two lines."""
    [sample] = _open(folder, {"instruction": "Translate.", "input": "rot", "output": "red"})

    assert sample.prompt == "Translate.\nrot"


def test_images_may_be_inside_of_the_record(folder: Path) -> None:
    """A data URL and base64 bytes are the bytes of the file."""
    content = (folder / "red.png").read_bytes()
    bytes_text = base64.b64encode(content).decode()
    records = [
        {"query": PROMPT, "response": "Red.", "images": [_data_url(folder)]},
        {"query": PROMPT, "response": "Red.", "images": [{"bytes": bytes_text, "path": "a.png"}]},
    ]

    opened = _open(folder, *records)

    assert [sample.image for sample in opened] == [EmbeddedImage("data URL", content), EmbeddedImage("a.png", content)]
    assert opened.duplicates == (("2", "1"),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "line 1 is not an object"),
        ({"a": 1}, "the format is unknown; the keys are `a`"),
        ({"query": "a", "prompt": "b", "answer": "c"}, "the format is unknown"),
        ({"messages": CHAT, "images": ["red.png"], "files": ["a.pdf"]}, "unknown key `files`"),
        ({"messages": "a"}, "not a list"),
        ({"messages": ["a"]}, "message 0 has the keys none"),
        ({"messages": [{**CHAT[0], "weight": 0}]}, "message 0 has the keys `role`, `content`, `weight`"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 0: unknown role `tool`"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role"),
        ({"messages": CHAT}, "`<image>` number 1 has no image"),
        ({"messages": CHAT, "images": ["red.png", "blue.png"]}, "2 images and 1 places for them"),
        (
            {"messages": CHAT, "images": ["https://example.com/a.png"]},
            "the image is a URL: `https://example.com/a.png`",
        ),
        ({"messages": CHAT, "images": ["s3://a/b.png"]}, "the image is a URL"),
        ({"messages": CHAT, "images": ["no.png"]}, "`no.png` is missing"),
        ({"messages": CHAT, "images": ["../red.png"]}, "outside of the folder"),
        ({"messages": CHAT, "images": ["/etc/passwd"]}, "outside of the folder"),
        ({"messages": CHAT, "images": [7]}, "an image is `7`"),
        ({"messages": CHAT, "images": [{"bytes": None, "path": None}]}, "neither `bytes` nor `path`"),
        ({"messages": CHAT, "images": [{"bytes": "a", "path": None}]}, "not valid base64"),
        ({"messages": CHAT, "images": ["data:image/png;base64,AAAA"]}, "cannot be read"),
        ({"messages": [*CHAT, {"role": "user", "content": "a"}], "images": ["red.png"]}, "is not an answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]},
            "unknown part of type `input_text`",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "unknown part of type `None`"),
        ({"query": "a", "response": 7}, "unknown part"),
        ({"query": "a", "response": "b", "history": [["a"]]}, "`history` is not a list of pairs"),
        ({"query": "a", "response": "b", "system": 7}, "`system` is not a text"),
        ({"query": "a", "response": "b", "tags": "x"}, "`tags` is not a list"),
        ({"query": "a", "response": "b", "id": {}}, "`id` is not a text"),
        ({"query": "a", "response": "b", "id": "a\0"}, "control character"),
        ({"texts": [{"user": "a"}]}, "text 0 is not a pair"),
        ({"texts": []}, "not an answer"),
        ({"image": {"<image_00>": "red.png"}, "conversations": [*CHAT]}, "`<image>` number 1 has no image"),
        (
            {"image": {"<image_00>": "red.png"}, "query": "a", "response": "b"},
            "no `<image_00>` in a prompt",
        ),
        ({"texts": [], "images": ["red.png"]}, "no prompt for 1 images"),
    ],
)
def test_invalid_records_are_named(folder: Path, record: Any, message: str) -> None:
    """The error has the line, the reason and a hint."""
    with pytest.raises(DatasetError, match=message) as caught:
        _open(folder, record)
    assert "line 1" in str(caught.value)
    assert caught.value.hint


def test_keys_without_content_can_be_ignored(folder: Path) -> None:
    """A key that may have content is an error, unless it is named."""
    record = {"query": PROMPT, "response": "Red.", "reward": 0.5, "meta": {"a": 1}}
    with pytest.raises(DatasetError, match="unknown key `reward`") as caught:
        _open(folder, record)
    assert "--ignore-key reward" in caught.value.hint

    assert len(_open(folder, record, options=ReadOptions(ignored_keys=("reward",)))) == 1


def test_repeated_ids_get_a_number(folder: Path) -> None:
    """Training sets have several conversations about the image that is their id."""
    record = {"query": PROMPT, "response": "Red."}

    opened = _open(folder, {**record, "id": "a"}, {**record, "id": "a"}, {**record, "id": 7}, record)

    assert [sample.id for sample in opened] == ["a", "a#2", "7", "4"]
    assert len(opened.duplicates) == 3


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson"])
def test_a_file_may_be_an_array(folder: Path, suffix: str) -> None:
    """The content of a file, not its name, selects an array or lines."""
    records = [{"query": PROMPT, "response": "Red.", "images": ["red.png"]}, {"query": "a", "response": "b"}]
    file = folder / f"train.{suffix}"
    file.write_text(json.dumps(records, indent=1))

    opened = SampleSet.open(file)

    assert [len(sample.images) for sample in opened] == [1, 0]
    assert opened.name == file.name
    file.write_text(json.dumps([records[0], {}]))
    with pytest.raises(DatasetError, match="record 2: the format is unknown"):
        SampleSet.open(file)


def test_damaged_files_are_errors(folder: Path) -> None:
    """Invalid JSON, an empty file, another encoding, and a FIFO."""
    file = folder / "train.json"
    for content, message in ((b"[{", "is not a JSON object"), (b"", "no samples"), (b"[]", "no samples")):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            SampleSet.open(file)
    file.write_bytes(b'{"query": "a"}\n{"query": "caf\xe9"}')
    with pytest.raises(DatasetError, match="line 2 is not UTF-8"):
        SampleSet.open(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DatasetError, match=r"no `manifest\.jsonl`"):
        SampleSet.open(file)


def test_images_can_be_in_another_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Paths are relative to it, and absolute paths have to be inside of it."""
    file = tmp_path_factory.mktemp("records") / "train.jsonl"
    records = [{"query": "a", "response": "b", "images": [name]} for name in ("red.png", str(folder / "blue.png"))]
    file.write_text("\n".join(map(json.dumps, records)))

    opened = SampleSet.open(file, ReadOptions(image_folder=folder))

    assert [sample.image for sample in opened] == [folder / "red.png", folder / "blue.png"]
    with pytest.raises(DatasetError, match="2 of 2 records .* are invalid"):
        SampleSet.open(file)
