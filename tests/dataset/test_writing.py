"""Sample sets written as a manifest with its images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpmq.dataset import EmbeddedImage, ReadOptions, SampleSet
from mcpmq.dataset.writing import write_set
from mcpmq.errors import OutputError


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return a file of records with several images, one of them twice, and an invalid line."""
    folder = tmp_path / "train"
    folder.mkdir()
    for name, seed in (("a.png", 1), ("b.jpeg", 2)):
        noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    shutil.copyfile(folder / "a.png", folder / "copy.png")
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Ünd\n"}]
    lines = [
        {"id": "x", "conversations": turns, "images": ["a.png", "b.jpeg"], "tags": ["t"]},
        {"id": "y", "conversations": turns, "images": ["copy.png", "no.png"]},
        {
            "id": "z",
            "system": "Be brief.",
            "query": "q",
            "response": "r",
            "history": [["<image>", "s"]],
            "images": ["copy.png"],
        },
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "train.jsonl"


def test_a_written_set_has_the_same_samples(records: Path, tmp_path: Path) -> None:
    """Texts, images, ids and tags are the same; equal images are stored once, and links are not needed."""
    samples = SampleSet.open(records, ReadOptions(skip_invalid=True))

    written = write_set(samples, tmp_path / "out")

    assert written.sha256 == samples.sha256
    assert [one.tags for one in written] == [("t",), ()]
    assert written.samples[1].turns[0].role == "system"
    names = sorted(file.name for file in (tmp_path / "out" / "images").iterdir())
    assert len(names) == 2
    assert {Path(name).suffix for name in names} == {".png", ".jpeg"}
    assert len(samples.invalid) == 1


def test_images_inside_of_records_become_files(records: Path, tmp_path: Path) -> None:
    """The suffix is that of the format."""
    samples = SampleSet.open(records, ReadOptions(skip_invalid=True))
    embedded = [
        EmbeddedImage("x", image.read_bytes()) for image in samples.samples[0].images if isinstance(image, Path)
    ]
    turn = samples.samples[0].turns[0]
    sample = type(samples.samples[0])("x", (type(turn)("user", (*embedded, "?")), samples.samples[0].turns[1]))

    written = write_set(SampleSet(records, (sample,)), tmp_path / "out")

    assert sorted(image.suffix for image in written.samples[0].images if isinstance(image, Path)) == [".jpg", ".png"]


def test_an_existing_folder_is_not_changed(records: Path, tmp_path: Path) -> None:
    """An output that is not empty, or inside of the set, is an error."""
    samples = SampleSet.open(records, ReadOptions(skip_invalid=True))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()

    with pytest.raises(OutputError, match="not empty"):
        write_set(samples, tmp_path / "out")
    manifest = write_set(samples, tmp_path / "second")
    with pytest.raises(OutputError, match="inside the sample set"):
        write_set(manifest, tmp_path / "second" / "third")
