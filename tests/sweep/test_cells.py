"""Cells and steps: names by inputs, refusals before the work, shared steps, and memory forecasts."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import DatasetError, SweepError
from mcpmq.sweep.cells import Cell, decide_cells
from mcpmq.sweep.steps import StepOptions, make_steps
from mcpmq.sweep.sweep_file import SweepFile
from mcpmq.system.progress import silent

CALIBRATED = 'name = "own"\nmethod = "gptq"\n[weights]\n"*" = "keep"\n"language.layers.*" = "int4-g32"\n'


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibration set, an evaluation set of other texts, and a recipe that needs calibration."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, count in (("starter", 12), ("heldout", 3)):
        (folder / name).mkdir()
        lines = [{"id": f"{name}{one}", "prompt": f"{name} {one}?", "answer": f"{one}."} for one in range(count)]
        (folder / name / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "own.toml").write_text(CALIBRATED)
    return folder


def decide(
    sets: Path, checkpoint: Path, recipes: list[str], formats: list[str], added: str = "", evaluation: str = "heldout"
) -> list[Cell]:
    """Write a sweep file with these axes and return its cells."""
    text = f'checkpoints = "{checkpoint}"\nrecipes = {json.dumps(recipes)}\nformats = {json.dumps(formats)}\n'
    (sets / "sweep.toml").write_text(f'{text}eval_set = "{evaluation}"\ncalibration = "starter"\n{added}')
    return decide_cells(SweepFile.load(sets / "sweep.toml"), silent)


def test_names_depend_on_the_inputs_alone(sets: Path, small_checkpoint: Path) -> None:
    """Draws that a recipe does not use, or that are equal, are one cell; other recipes and formats are others."""
    plain = decide(sets, small_checkpoint, ["phone-int4"], ["gguf"])
    drawn = decide(sets, small_checkpoint, ["phone-int4", "own.toml"], ["gguf"], "samples = [4, 100]\nseeds = [0, 1]")

    assert [cell.name for cell in plain] == [drawn[0].name]
    assert [(one.recipe.name, one.combination.samples, one.combination.seed) for one in drawn[1:]] == [
        ("own", 4, 0),
        ("own", 4, 1),
        ("own", 100, 0),  # all 12 samples: the seed has no effect
    ]
    assert len({cell.name for cell in drawn}) == len({cell.quantized for cell in drawn}) == 4


def test_unsupported_cells_have_a_reason(sets: Path, small_checkpoint: Path) -> None:
    """A format that cannot store a recipe is a cell that is not run; without another one, the sweep is an error."""
    [gguf, awq] = decide(sets, small_checkpoint, ["phone-int4"], ["gguf", "awq"])
    steps = make_steps([gguf, awq], (), sets / "out", StepOptions(1))

    assert gguf.problem == ""
    assert "`awq` cannot store" in awq.problem
    assert [step.name for step in steps] == [gguf.name]
    with pytest.raises(SweepError, match="no cell of the sweep can be run: phone-int4 awq: `awq` cannot store"):
        decide(sets, small_checkpoint, ["phone-int4"], ["awq"])


def test_sets_that_overlap_or_are_missing_are_rejected(sets: Path, small_checkpoint: Path) -> None:
    """A calibrated recipe needs a set, and one that shares no sample with the evaluation set."""
    with pytest.raises(DatasetError, match="shares 12 images, videos or texts"):
        decide(sets, small_checkpoint, ["own.toml"], ["gguf"], evaluation="starter")
    file = SweepFile.load(sets / "sweep.toml").model_copy(update={"calibration": ()})
    with pytest.raises(DatasetError, match="the recipe `own` needs a calibration set"):
        decide_cells(file, silent)


def test_warnings_about_sets_are_notices(sets: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    """Invalid records are left out and counted, and a small set is named, once for all cells that use it."""
    decide(sets, small_checkpoint, ["own.toml"], ["gguf", "onnx"])
    file = SweepFile.load(sets / "sweep.toml")
    lines = (sets / "starter" / "manifest.jsonl").read_text().splitlines()
    (tmp_path / "manifest.jsonl").write_text("\n".join([*lines[:5], '{"id": "empty"}']))
    notices: list[str] = []

    cells = decide_cells(file.model_copy(update={"calibration": (str(tmp_path),)}), silent, notify=notices.append)

    assert len({cell.calibration.sha256 for cell in cells if cell.calibration}) == 1
    assert sum("left out 1 of 6 records" in text for text in notices) == 1
    assert sum("5 samples, fewer than 64" in text for text in notices) == 1
    assert sum("3 samples without an image, fewer than 20" in text for text in notices) == 1


def test_shared_work_is_a_step_of_its_own(sets: Path, small_checkpoint: Path) -> None:
    """Two formats share a quantized model, and all cells the measurement of the original; one cell has neither."""
    cells = decide(sets, small_checkpoint, ["phone-int4", "own.toml"], ["gguf", "onnx"])
    steps = {step.name: step for step in make_steps(cells, (), sets / "out", StepOptions(2))}
    [last] = make_steps(cells, [cell.name for cell in cells[1:]], sets / "out", StepOptions(2))

    first, *shared = list(steps.values())[:3]
    assert (first.request.kind, shared[0].request.kind) == ("original", "quantize")
    assert steps[cells[0].name].requires == (first.name, f"quantize-{cells[0].quantized}")
    assert sum(step.request.kind == "quantize" for step in steps.values()) == 2
    assert (last.requires, last.request.quantized) == ((), None)  # written in one pass
    assert last.request.load_recipe() == cells[0].recipe


def test_memory_is_the_largest_of_the_processes_of_a_step(sets: Path, small_checkpoint: Path) -> None:
    """A calibration reserves the hidden states of its samples; a cell that measures the original reserves it, too."""
    [few] = decide(sets, small_checkpoint, ["own.toml"], ["gguf"], "samples = 4")
    [all_samples] = decide(sets, small_checkpoint, ["own.toml"], ["gguf"])
    quantize, alone = make_steps([few], (), sets / "out", StepOptions(1))

    hidden = json.loads((small_checkpoint / "config.json").read_text())["hidden_size"]
    assert all_samples.memory.quantize - few.memory.quantize == (12 - 4) * 1024 * 2 * 4 * hidden
    assert quantize.memory_nbytes == few.memory.quantize
    assert alone.memory_nbytes == max(few.memory.export, few.memory.engine, few.memory.original)
