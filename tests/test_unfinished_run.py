"""Unfinished runs: only verified blocks of the same request are resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mcpmq.artifact import CalibrationRecord, FileRecord, Manifest, SourceRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import OutputError
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Item
from mcpmq.unfinished_run import RunRequest, UnfinishedRun
from tests.kill_points import read_files

SOURCE = SourceRecord(name="model", sha256="1" * 64, nbytes=9)


def make_request(**changes: Any) -> RunRequest:
    fields = {
        "kind": "quantized",
        "family": "f",
        "source": SOURCE,
        "recipe": {"name": "a"},
        "versions": {"torch": "2.9"},
    }
    manifest = Manifest.model_validate({**fields, "weights": (), "instruction_set": "AVX2 aaaa", **changes})
    return RunRequest(manifest=manifest, copied_files={"tokenizer.json": "2" * 64})


def _interrupted_after(blocks: int, stage: str) -> Any:
    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        yield from items if label != stage else items[:blocks]
        if label == stage:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def plan(small_checkpoint: Path) -> Plan:
    """The plan of calibrated-int4 for the small checkpoint."""
    return make_plan(Checkpoint.open(small_checkpoint), Recipe.load("calibrated-int4"))


@pytest.fixture(scope="module")
def whole(plan: Plan, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The result of an uninterrupted run."""
    return quantize(plan, tmp_path_factory.mktemp("whole") / "out", mixed_set)


@pytest.fixture
def unfinished(plan: Plan, mixed_set: SampleSet, tmp_path: Path) -> Path:
    """The folder of a run that was interrupted in the sixth calibrated block."""
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set, _interrupted_after(5, "calibrating"))
    return tmp_path / ".out.partial"


def test_every_finished_block_has_its_hash(unfinished: Path) -> None:
    """The record of the run has the request and the hashes of the files in `blocks`."""
    record = json.loads((unfinished / "request.json").read_text())

    assert record["request"]["manifest"]["recipe"]["name"] == "calibrated-int4"
    assert record["request"]["copied_files"].keys() >= {"config.json", "tokenizer.json", "preprocessor_config.json"}
    assert sorted(f"{name}.safetensors" for name in record["blocks"]) == sorted(
        file.name for file in (unfinished / "blocks").iterdir()
    )


def _zero_data(file: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:header] + bytes(len(content) - header))


CORRUPTIONS: dict[str, Any] = {
    "zeros behind a valid header": _zero_data,
    "an empty file": lambda file: file.write_bytes(b""),
    "a truncated file": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "a missing file": Path.unlink,
    "a link": lambda file: (file.rename(file.with_name("other")), file.symlink_to("other")),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_block_with_another_hash_is_removed(tmp_path: Path, corruption: str) -> None:
    """Only the blocks whose files have the recorded hash are finished; other files are removed."""
    run = UnfinishedRun.resume(tmp_path, make_request())
    for name in ("language.layers.0", "language.layers.1"):
        run.write_block(run.block_file(name), {f"{name}.weight": torch.ones(40)})
    (tmp_path / "blocks" / "language.layers.2.partial").touch()
    (tmp_path / "stray.json").touch()
    CORRUPTIONS[corruption](run.block_file("language.layers.1"))

    resumed = UnfinishedRun.resume(tmp_path, make_request())

    assert resumed.blocks.keys() == {"language.layers.0"}
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"request.json", "blocks", "blocks/language.layers.0.safetensors"}
    assert json.loads((tmp_path / "request.json").read_text())["blocks"] == resumed.blocks


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"{", b"[]", b'{"request": {}}', b"\xff\xfe", None])
def test_a_damaged_record_starts_the_run_over(tmp_path: Path, content: bytes | None) -> None:
    """Without a readable record no block is finished."""
    run = UnfinishedRun.resume(tmp_path, make_request())
    run.write_block(run.block_file("head"), {"head.weight": torch.ones(40)})
    (tmp_path / "request.json").unlink() if content is None else (tmp_path / "request.json").write_bytes(content)

    assert UnfinishedRun.resume(tmp_path, make_request()).blocks == {}
    assert list((tmp_path / "blocks").iterdir()) == []


def test_a_damaged_run_ends_with_the_same_bytes(
    plan: Plan, mixed_set: SampleSet, whole: QuantizedModel, unfinished: Path
) -> None:
    """A block with zeros behind its header is quantized again, the others are not; an empty record starts over."""
    blocks = sorted((unfinished / "blocks").iterdir())
    times = {block.name: block.stat().st_mtime_ns for block in blocks}
    _zero_data(blocks[1])
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, unfinished.parent / "out", mixed_set, _interrupted_after(9, "calibrating"))
    resumed = {name: (unfinished / "blocks" / name).stat().st_mtime_ns for name in times}
    assert [name for name in times if resumed[name] != times[name]] == [blocks[1].name]

    (unfinished / "request.json").write_bytes(b"")
    result = quantize(plan, unfinished.parent / "out", mixed_set)

    assert read_files(result.path) == read_files(whole.path)


def test_a_block_that_changes_during_the_run_is_an_error(tmp_path: Path) -> None:
    """The hashes in the manifest are those that were recorded when the blocks were written."""
    run = UnfinishedRun.resume(tmp_path, make_request())
    run.write_block(run.block_file("head"), {"head.weight": torch.ones(40)})
    record = FileRecord(path="blocks/head.safetensors", component="head", nbytes=1, sha256=run.blocks["head"])

    run.check_blocks((record,))
    with pytest.raises(OutputError, match=r"head\.safetensors` changed after it was written"):
        run.check_blocks((record.model_copy(update={"sha256": "0" * 64}),))


def test_another_request_does_not_resume(tmp_path: Path) -> None:
    """The error names the difference; the same request resumes."""
    UnfinishedRun.resume(tmp_path, make_request())
    calibration = CalibrationRecord(name="set", sha256="3" * 64, samples=1, with_image=0, fingerprints=())
    cases = {
        r"another recipe (`a`, not `b`)": make_request(recipe={"name": "b"}),
        r"another checkpoint": make_request(source=SOURCE.model_copy(update={"sha256": "4" * 64})),
        r"another calibration set": make_request(calibration_set=calibration),
        r"another device (CPU, not H100)": make_request(device="H100"),
        r"another instruction set (AVX2 aaaa, not AVX512 bbbb)": make_request(instruction_set="AVX512 bbbb"),
        r"another version (torch 2.9, not torch 2.10)": make_request(versions={"torch": "2.10"}),
        r"another plan": make_request(notes=("x",)),
    }
    for expected, request in cases.items():
        with pytest.raises(OutputError) as caught:
            UnfinishedRun.resume(tmp_path, request)
        assert str(caught.value) == f"`{tmp_path}` has an unfinished run of {expected}"
    changed = make_request().model_copy(update={"copied_files": {"tokenizer.json": "5" * 64}})
    with pytest.raises(OutputError, match="another checkpoint"):
        UnfinishedRun.resume(tmp_path, changed)

    assert UnfinishedRun.resume(tmp_path, make_request()).blocks == {}


def test_a_run_on_another_instruction_set_does_not_resume(
    small_checkpoint: Path, mixed_set: SampleSet, unfinished: Path, mcpmq: Any
) -> None:
    """The codes of another instruction set are not mixed into a run: the command exits with 1 and names both."""
    command = [sys.executable, "-m", "mcpmq", "quantize", small_checkpoint, unfinished.parent / "out"]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    result = subprocess.run(
        [*map(str, command), "-r", "calibrated-int4", "--calibration", str(mixed_set.path)],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert "has an unfinished run of another instruction set (" in result.stderr
    assert "not DEFAULT " in result.stderr


@pytest.mark.parametrize(("command", "kills"), [("quantize", 5), ("export", 3)])
def test_a_killed_command_runs_again(
    small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path, command: str, kills: int
) -> None:
    """SIGKILL before random operations: a run with other arguments is an error, the same command ends with equal bytes.

    No other file is left. The seed is fixed; the kills are at other operations for other values.
    """
    arguments = [command, small_checkpoint, mixed_set.path, tmp_path, 7, kills]
    output = subprocess.run(
        [sys.executable, "-m", "tests.kill_points", *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout
    results = json.loads(output)["kills"]

    assert len(results) == kills
    for result in results:
        assert result["same"], result
        assert result["left"] == [], result
        if command == "quantize" and result["at"] > 9:  # the request is recorded
            assert "has an unfinished run of another recipe" in result["other"] or "not empty" in result["other"]


def test_the_record_remains_until_the_folder_has_its_name(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between hashing and renaming does not release the request: the last operation removes the record."""
    plan, out = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4")), tmp_path / "out"
    seen: list[bool] = []
    replace = Path.replace

    def check(path: Path, target: Path) -> Path:
        if target == out:
            seen.append((path / "request.json").is_file() and (path / "mcpmq.json").is_file())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", check)
    quantize(plan, out)

    assert seen == [True]
    assert not (out / "request.json").exists()
    (out / "request.json").write_text("of a run that was killed before its last operation")
    quantize(plan, out)
    assert not (out / "request.json").exists()
