"""Commands of sample sets."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.dataset import SampleSet
from tests.commands import Command


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return a file of four records, one of them invalid."""
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    lines = [{"query": f"<image>Is it {n}?", "response": "Yes.", "images": ["a.png"], "reward": 1} for n in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"query": "no answer"}])))
    return tmp_path / "train.jsonl"


def test_convert_writes_a_manifest(records: Path, tmp_path: Path, mcpmq: Command) -> None:
    """Invalid records and unknown keys are errors until they are left out and ignored; the draw is that of the seed."""
    out = tmp_path / "out"
    failed = mcpmq("dataset", "convert", records, out)
    assert failed.exit_code == 1
    assert "4 of 4 records" in failed.stderr
    assert not out.exists()

    options = "--ignore-key", "reward", "--skip-invalid"
    converted = mcpmq("dataset", "convert", records, out, *options, "--json")

    assert converted.exit_code == 0
    assert "left out: `" in converted.stderr
    assert "line 4: the format is unknown" in converted.stderr
    assert json.loads(converted.stdout)["samples"] == len(SampleSet.open(out)) == 3
    drawn = mcpmq(
        "dataset", "convert", records, tmp_path / "drawn", *options, "--samples", "2", "--seed", "5", "--json"
    )
    assert json.loads(drawn.stdout)["samples"] == 1  # one of the two drawn records is invalid


def test_inspect_describes_a_set(records: Path, tiny_checkpoint: Path, tmp_path: Path, mcpmq: Command) -> None:
    """Counts and invalid records; tokens of a checkpoint, and a page, on request."""
    set_folder = tmp_path / "set"
    mcpmq("dataset", "convert", records, set_folder, "--ignore-key", "reward", "--skip-invalid")

    described = mcpmq("inspect", set_folder, "--checkpoint", tiny_checkpoint, "--html", tmp_path / "a.html", "--json")

    assert described.exit_code == 0
    properties = json.loads(described.stdout)
    assert properties["images"] == 3
    assert properties["tokens_of_images"]["largest"] == 4
    assert (tmp_path / "a.html").read_text().count("<article>") == 3
    invalid = mcpmq("inspect", records)
    assert invalid.exit_code == 1
    drawn = mcpmq("inspect", set_folder, "--samples", "1")
    assert "samples" in drawn.stdout
    assert "records" in drawn.stdout


def test_a_page_does_not_replace_another_file(records: Path, tmp_path: Path, mcpmq: Command) -> None:
    """Only a page is replaced by a page."""
    set_folder, page = tmp_path / "set", tmp_path / "notes.html"
    mcpmq("dataset", "convert", records, set_folder, "--ignore-key", "reward", "--skip-invalid")
    page.write_text("notes")

    assert "was not written by this command" in mcpmq("inspect", set_folder, "--html", page).stderr
    assert page.read_text() == "notes"
