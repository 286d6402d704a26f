"""Sweep files: the combinations of their axes, their paths, and errors that name the key."""

from pathlib import Path

import pytest

from mcpmq.errors import SweepError
from mcpmq.sweep.sweep_file import Combination, SweepFile

AXES = 'checkpoints = "model"\nrecipes = ["phone-int4", "own.toml"]\nformats = ["gguf", "onnx"]\neval_set = "heldout"\n'


def load(folder: Path, text: str) -> SweepFile:
    """Write a sweep file and read it."""
    (folder / "sweep.toml").write_text(text)
    return SweepFile.load(folder / "sweep.toml")


def test_all_combinations_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Formats of one draw, draws of one recipe and recipes of one checkpoint are together; one value needs no list."""
    found = list(load(tmp_path, AXES + 'calibration = "set"\nsamples = [8, 16]\nseeds = [0, 1]\n').combinations())

    assert len(found) == 2 * 2 * 2 * 2
    assert found[0] == Combination("model", "phone-int4", "gguf", "set", 8, 0)
    assert found[1] == Combination("model", "phone-int4", "onnx", "set", 8, 0)
    assert found[2] == Combination("model", "phone-int4", "gguf", "set", 8, 1)
    assert found[-1] == Combination("model", "own.toml", "onnx", "set", 16, 1)


def test_paths_are_relative_to_the_file_and_other_names_stay(tmp_path: Path) -> None:
    """A recipe beside the file is its path; a built-in recipe and a hub id keep their names."""
    (tmp_path / "own.toml").touch()
    (tmp_path / "heldout").mkdir()

    found = load(tmp_path, AXES.replace('"model"', '"owner/model"'))

    assert found.recipes == ("phone-int4", str(tmp_path / "own.toml"))
    assert (found.checkpoints, found.eval_set) == (("owner/model",), str(tmp_path / "heldout"))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("speed = 3\n", "speed: Extra inputs"),
        ("samples = [0]\ncalibration = 'set'\n", "`samples` has 0"),
        ("seeds = [1]\ncalibration = 'set'\n", "`samples` is missing"),
        ("samples = 8\n", "`calibration` is missing"),
        ("baseline = 'report'\n", "`gates` is missing"),
        ("calibration = 3.5\n", "calibration"),
        ("calibration = [", "not valid TOML"),
    ],
)
def test_invalid_files_are_rejected_with_their_key(tmp_path: Path, added: str, message: str) -> None:
    """The error names the key, or the missing one."""
    with pytest.raises(SweepError, match=message):
        load(tmp_path, AXES + added)


def test_a_format_that_does_not_exist_is_rejected(tmp_path: Path) -> None:
    """Formats are checked when the file is read."""
    with pytest.raises(SweepError, match="formats"):
        load(tmp_path, AXES.replace('"onnx"', '"gguf2"'))
