"""A whole sweep: cells are converted and measured, finished ones are skipped, and every cell has a verdict."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcpmq.errors import McpmqError
from mcpmq.evaluate import Settings
from mcpmq.sweep import pool
from mcpmq.sweep.request import DONE_FILE, LOG_FILE, StepRequest
from mcpmq.sweep.results import read_result
from mcpmq.sweep.step import run_step
from tests.commands import Command

GATE = "[original.text]\nkl_divergence = { at_most = 1000 }\n"


@dataclass
class Ended:
    """A process that has ended."""

    exit_code: int

    def poll(self) -> int:
        return self.exit_code


@pytest.fixture
def steps_in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Steps run in this process, without answers and cache; the names of their folders are collected.

    A file `kill` in the folder of a step, which is then removed, ends it before it begins.
    """
    begun: list[str] = []

    @contextmanager
    def in_this_process(folder: Path, request: StepRequest) -> Iterator[Ended]:
        begun.append(folder.name)
        request.write(folder)
        if (folder / "kill").exists():
            (folder / "kill").unlink()
            yield Ended(-9)
            return
        try:
            run_step(folder, Settings.from_options(use_cache=False, generate_answers=False))
        except McpmqError as error:
            (folder / LOG_FILE).write_text(f"error: {error}\n\nhint: {error.hint}\n")
            yield Ended(1)
        else:
            yield Ended(0)

    monkeypatch.setattr(pool, "step_process", in_this_process)
    return begun


@pytest.fixture
def sweep_file(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A sweep of two recipes in one format on two texts, with a gate that both pass."""
    (tmp_path / "set").mkdir()
    lines = [{"id": f"{one}", "prompt": f"How many {one}?", "answer": f"There are {one}."} for one in range(2)]
    (tmp_path / "set" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "gate.toml").write_text(GATE)
    text = f'checkpoints = "{small_checkpoint}"\nrecipes = ["phone-int4", "phone-int8"]\nformats = ["gguf", "awq"]\n'
    (tmp_path / "sweep.toml").write_text(f'{text}eval_set = "set"\ngates = "gate.toml"\n')
    return tmp_path / "sweep.toml"


def test_sweep(mcpmq: Command, sweep_file: Path, steps_in_this_process: list[str]) -> None:
    """All cells are measured and shown; a killed one is run again; a second run repeats none, but checks the gates."""
    out, begun = sweep_file.with_suffix(""), steps_in_this_process
    first = mcpmq("sweep", sweep_file, "--json")
    result = json.loads(first.stdout)
    int4, int8 = (cell for cell in result["cells"] if cell["status"] == "finished")

    assert first.exit_code == 0, first.stderr
    assert [cell["status"] for cell in result["cells"]] == ["finished", "unsupported"] * 2
    assert [int4["recipe"], int8["recipe"]] == ["phone-int4", "phone-int8"]
    assert int4["nbytes"] < int8["nbytes"]
    assert int4["kl_divergence"]["value"] > int8["kl_divergence"]["value"] > 0
    assert [cell["on_front"] for cell in result["cells"]] == [True, False, True, False]
    assert (int4["gate"], result["finished"]) == ("passed", True)
    assert begun[0].startswith("original-")
    assert begun[1:] == [int4["name"], int8["name"]]
    assert (out / "cells" / int4["name"] / "gguf" / "mcpmq.json").is_file()
    assert f"cells/{int4['name']}/report.html" in (out / "sweep.html").read_text()
    assert "begun: original small" in first.stderr
    assert "(2 of 2 cells)" in first.stderr

    del begun[:]
    (out / "cells" / int8["name"] / DONE_FILE).unlink()
    (out / "cells" / int8["name"] / "kill").touch()
    sweep_file.with_name("gate.toml").write_text(GATE.replace("1000", "0"))
    second = mcpmq("sweep", sweep_file)

    assert begun == [int8["name"], int8["name"]]  # killed, and run again
    assert second.exit_code == 3, second.stderr
    assert "VIOLATED" in second.stdout
    assert "2 attempts" in second.stdout
    assert "failed, trying again: small phone-int8 gguf: the process was ended by SIGKILL" in second.stderr
    again = read_result(out)
    assert again is not None
    assert [cell.reused for cell in again.cells if cell.status == "finished"] == [True, False]
    assert max(map(len, second.stdout.partition("KLD: mean")[0].splitlines())) <= 80


def test_a_cell_that_fails_ends_with_exit_code_1(
    mcpmq: Command, sweep_file: Path, steps_in_this_process: list[str], small_checkpoint: Path
) -> None:
    """The other cells are finished, and the table has the error; the folder of another output is an error."""
    out = sweep_file.with_suffix("")
    mcpmq("sweep", sweep_file, "--memory-limit", "1kB")
    failed = read_result(out)
    rejected = mcpmq("sweep", sweep_file, small_checkpoint)

    assert failed is not None
    assert failed.exit_code == 1
    assert "needs about" in failed.cells[0].error
    assert rejected.exit_code == 1
    assert "is not the folder of a sweep" in rejected.stderr


def test_a_step_whose_input_changed_is_rejected(sweep_file: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    """The hashes of the request are those of the inputs when the sweep began."""
    request = {"kind": "original", "checkpoint": str(small_checkpoint), "checkpoint_sha256": "00"}
    evaluation = {"path": str(sweep_file.parent / "set"), "samples": None, "seed": 0, "sha256": "00"}
    StepRequest.model_validate(request | {"evaluation": evaluation}).write(tmp_path / "step")

    with pytest.raises(McpmqError, match="the checkpoint `.*small` has changed"):
        run_step(tmp_path / "step", Settings.from_options(use_cache=False))
