"""Counts and lengths of sample sets."""

import json
from pathlib import Path

from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import ReadOptions, SampleSet
from mcpmq.dataset.statistics import set_statistics
from mcpmq.families.encoding import token_statistics
from mcpmq.system.progress import silent


def _write(folder: Path) -> Path:
    for name, size in (("a.png", (30, 20)), ("b.png", (60, 50)), ("c.png", (90, 10))):
        Image.new("RGB", size, "red").save(folder / name)
    lines = [
        {"query": "<image><image>two", "response": "yes", "images": ["a.png", "b.png"], "tags": ["x"]},
        {"query": "<image>", "response": "abcde", "images": ["c.png"], "tags": ["x", "y"]},
        {"query": "text", "response": "a", "system": "s", "history": [["p", "q"]]},
        {"query": "text", "response": "a", "system": "s", "history": [["p", "q"]]},
        {"query": "?"},
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "train.jsonl"


def test_samples_turns_and_sizes_are_counted(tmp_path: Path) -> None:
    """Invalid records and duplicates are named; sizes are smallest, median and largest."""
    samples = SampleSet.open(_write(tmp_path), ReadOptions(skip_invalid=True))

    found = set_statistics(samples)

    assert found.pop("sha256") == samples.sha256
    [reason] = found.pop("first_invalid_records")
    assert "line 5" in reason
    assert found == {
        "samples": 4,
        "records": 5,
        "invalid_records": 1,
        "duplicates": 1,
        "first_duplicates": ["4 of 3"],
        "with_image": 2,
        "with_several_images": 1,
        "with_system_prompt": 2,
        "answers": 6,
        "characters_of_prompts": {"smallest": 0, "median": 22, "largest": 41},
        "characters_of_answers": {"smallest": 1, "median": 1, "largest": 5},
        "images": 3,
        "image_width": {"smallest": 30, "median": 60, "largest": 90},
        "image_height": {"smallest": 10, "median": 20, "largest": 50},
        "tags": {"x": 2, "y": 1},
    }


def test_tokens_are_counted_for_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Samples that are longer than the context, and those that the model rejects, are named."""
    file = tmp_path / "train.jsonl"
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    lines = [
        {"id": "image", "query": "<image>a", "response": "b", "images": ["a.png"]},
        {"id": "long", "query": "q" * 3000, "response": "b"},
        {"id": "control", "query": "<unk>", "response": "b"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    processor = Checkpoint.open(tiny_checkpoint).family.open_processor(tiny_checkpoint)

    found = token_statistics(processor, SampleSet.open(file).samples, silent)

    assert found["tokens"]["largest"] > 3000
    assert found["tokens_of_images"] == {"smallest": 4, "median": 4, "largest": 4}
    assert found["tokens_of_answers"]["largest"] == 2
    assert (found["context_length"], found["longer_than_context"], found["rejected_by_the_model"]) == (2048, 1, 1)
    assert found["first_longer_than_context"][0].startswith("long with 3,0")
    assert "`control` contains the special token" in found["first_rejected_by_the_model"][0]
