"""Text files of a checkpoint in artifacts."""

import json
import shutil
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark_is_read_and_copied_without_it(encoding: str, copy: Path, tmp_path: Path) -> None:
    """Windows editors write a byte order mark; transformers rejects it."""
    before = {file.name: json.loads(file.read_text()) for file in copy.glob("*.json")}
    for file in copy.glob("*.json"):
        file.write_text(json.dumps(before[file.name]), encoding=encoding)

    quantize(make_plan(Checkpoint.open(copy), Recipe.load("full")), tmp_path / "out")

    for name in before.keys() - {"model.safetensors.index.json"}:
        assert json.loads((tmp_path / "out" / name).read_text(encoding="utf-8")) == before[name]


def test_other_files_are_copied_unchanged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The bytes and the sizes are those of the checkpoint."""
    files = Checkpoint.open(tiny_checkpoint).text_files
    assert "tokenizer.json" in {file.name for file in files}
    for file in files:
        file.copy(tmp_path)
        assert (tmp_path / file.name).read_bytes() == (tiny_checkpoint / file.name).read_bytes()
        assert file.nbytes == (tiny_checkpoint / file.name).stat().st_size


def test_a_snapshot_in_a_hub_cache_has_the_name_of_the_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The name of its folder is a commit."""
    snapshot = tmp_path / "models--openbmb--MiniCPM-V-2_6" / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    shutil.copytree(tiny_checkpoint, snapshot)

    assert Checkpoint.open(snapshot).name == "openbmb/MiniCPM-V-2_6"
    assert Checkpoint.open(tiny_checkpoint).name == "tiny"
