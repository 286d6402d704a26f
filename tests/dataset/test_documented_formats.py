"""The formats of docs/datasets.md: every example is read, and all are the same conversation."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.dataset import Audio, SampleSet, Turn
from tests.audio_tools import write_wav

DOCUMENT = Path(__file__).parents[2] / "docs" / "datasets.md"
EXAMPLES = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_the_same_conversation(example: str, tmp_path: Path) -> None:
    """One image or audio, one prompt and one answer."""
    (tmp_path / "images").mkdir()
    (tmp_path / "audio").mkdir()
    Image.new("RGB", (28, 28), "red").save(tmp_path / "images" / "1.png")
    write_wav(tmp_path / "audio" / "1.wav", 0.5)
    (tmp_path / "train.jsonl").write_text(example)

    [sample] = SampleSet.open(tmp_path / "train.jsonl")

    audio = Audio(tmp_path / "audio" / "1.wav")
    prompt = Turn("user", (audio if "<audio>" in example else tmp_path / "images" / "1.png", "What color?"))
    assert sample.turns == (prompt, Turn("assistant", ("Red.",)))


def test_the_rules_name_the_ignored_keys() -> None:
    """The document has all keys without an effect."""
    from mcpmq.dataset.records import METADATA

    text = DOCUMENT.read_text(encoding="utf-8")

    assert len(EXAMPLES) == 12
    assert all(f"`{key}`" in text for key in METADATA)
    assert json.loads(EXAMPLES[0])["messages"]
