"""Sample sets of commands: invalid records are left out, counted and named."""

import json
from pathlib import Path

import pytest

from mcpmq import cli
from mcpmq.cli.sample_sets import open_optional_set, open_set
from mcpmq.errors import DatasetError


def _write(folder: Path, *, valid: int, invalid: int) -> Path:
    lines = [{"query": f"Is it {number}?", "response": "Yes."} for number in range(valid)]
    lines += [{"query": f"no answer {number}"} for number in range(invalid)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "train.jsonl"


def test_invalid_records_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A notice has their number and the first three; without invalid records it is not printed."""
    opened = open_set(_write(tmp_path, valid=7, invalid=5))
    notice = capsys.readouterr().err

    assert len(opened) == 7
    assert "sample set `train.jsonl`: left out 5 of 12 records: " in notice
    assert [f"line {number}:" in notice for number in (8, 9, 10, 11)] == [True, True, True, False]
    assert "and 2 more, which `mcpmq inspect" in notice

    kept, held_out = opened.split_holdout()
    assert kept.left_out_warning == opened.left_out_warning
    assert held_out.left_out_warning == ""
    open_set(_write(tmp_path, valid=3, invalid=0))
    assert capsys.readouterr().err == ""
    assert open_optional_set(None) is None


def test_a_set_without_a_valid_record_is_an_error(tmp_path: Path) -> None:
    """The error has the number of records and the first ones."""
    with pytest.raises(DatasetError, match="2 of 2 records .*line 1.*line 2"):
        open_set(_write(tmp_path, valid=0, invalid=2))


def test_a_draw_has_its_own_invalid_records(tmp_path: Path) -> None:
    """Records that are not drawn are not read."""
    opened = open_set(_write(tmp_path, valid=5, invalid=5), 4, 1)

    assert len(opened) + len(opened.invalid) == 4


def test_commands_open_their_sets_without_invalid_records() -> None:
    """All but `dataset convert`, which has an option for it, and `inspect`, which lists them."""
    modules = sorted(Path(cli.__file__).parent.glob("*.py"))
    direct = [file.stem for file in modules if "SampleSet.open(" in file.read_text()]

    assert direct == ["dataset", "inspect", "sample_sets"]
