"""The inside of a measuring process: what it writes, prints and returns."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mcpmq.families.family import Inputs
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.worker import DONE, RESULT, Task, main, resident_bytes


@pytest.fixture
def folder(tmp_path: Path, tiny_samples: list[Inputs]) -> Path:
    """Two samples on disk."""
    (tmp_path / "samples").mkdir()
    files = SampleFiles(tmp_path / "samples")
    for sample in tiny_samples[:2]:
        files.append(sample)
    return tmp_path


def task(folder: Path, model: Path) -> str:
    """The file of a task for the torch engine."""
    (folder / "task.json").write_text(
        json.dumps(asdict(Task("torch", str(model), str(folder / "samples"), threads=1, keep=None, against={})))
    )
    return str(folder / "task.json")


def test_figures_are_written_and_every_sample_is_told(
    folder: Path, tiny_checkpoint: Path, tiny_samples: list[Inputs], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line on stdout for each sample, the losses in JSON, and 0 in the end."""
    code = main(task(folder, tiny_checkpoint))
    result = json.loads((folder / RESULT).read_text())
    lengths = [len(s.tokens) - s.answer_start for s in tiny_samples[:2]]
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [DONE, DONE]
    assert [len(one["losses"]) for one in result["answers"]] == lengths
    assert [len(one["likeliest"]) for one in result["answers"]] == lengths
    assert result["tokens"] == sum(len(s.tokens) for s in tiny_samples[:2])


def test_an_error_for_the_user_is_written_with_its_hint(folder: Path) -> None:
    """And 1 in the end; a bug would leave its traceback instead."""
    code = main(task(folder, folder))
    result = json.loads((folder / RESULT).read_text())
    assert code == 1
    assert "config.json" in result["error"]
    assert result["hint"]


def test_resident_memory_is_measured_now_and_at_its_peak() -> None:
    """Touching 80 MB shows in both, giving them back only in what is resident now."""
    before = resident_bytes("VmRSS")
    touched = np.ones(10_000_000)
    during = resident_bytes("VmRSS")
    del touched
    assert during - before == pytest.approx(80e6, rel=0.1)
    assert resident_bytes("VmRSS") < during - 40e6
    assert resident_bytes("VmHWM") >= during - 1e6
