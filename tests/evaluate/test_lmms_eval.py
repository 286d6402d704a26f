"""Sample files of lmms-eval: scores by document, and invalid lines."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mcpmq.errors import DatasetError
from mcpmq.evaluate.lmms_eval import read_lmms_eval


def write_samples(file: Path, *samples: dict[str, Any]) -> Path:
    """Write samples with the keys of lmms-eval."""
    common = {"target": "a", "filtered_resps": ["a"], "doc_hash": "0" * 64, "input": "How many?"}
    file.write_text("".join(json.dumps({**common, **sample}) + "\n" for sample in samples))
    return file


def test_scores_are_numbers_or_objects(tmp_path: Path) -> None:
    """A task stores a number, a truth value, or an object with the number `score`; empty lines are skipped."""
    file = write_samples(
        tmp_path / "a_samples_b.jsonl",
        {"doc_id": 0, "exact": 0.5},
        {"doc_id": 2, "exact": True},
        {"doc_id": "x", "exact": {"question_id": "7", "score": 1}},
    )
    file.write_text(file.read_text() + "\n")

    assert read_lmms_eval(file, "exact") == {"0": 0.5, "2": 1.0, "x": 1.0}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"doc_id": 0, "f1": 1}], "line 1 has no `exact`; it has `target`, `filtered_resps`"),
        ([{"doc_id": 0, "exact": 1}, {"doc_id": 0, "exact": 1}], "line 2: the document `0` is given twice"),
        ([{"doc_id": 0, "exact": float("nan")}], "line 1: `exact` is not a finite number"),
        ([{"doc_id": 0, "exact": "1"}], "line 1: `exact` is not a finite number"),
        ([{"doc_id": 0, "exact": {"accuracy": 1}}], "line 1: `exact` is not a finite number"),
        ([{"doc_id": 0, "exact": 10**400}], "line 1: `exact` is not a finite number"),
        ([{"exact": 1}], "line 1 has no `doc_id`"),
        ([{"doc_id": "\ud800", "exact": 1}], "line 1 has no `doc_id` of printable characters"),
        ([], "has no samples"),
    ],
)
def test_invalid_samples_are_errors(samples: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    """The error has file, line and reason."""
    file = write_samples(tmp_path / "samples.jsonl", *samples)

    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read_lmms_eval(file, "exact")

    assert str(file) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"), [(b"[]", "is not a JSON object"), (b"{", "is not valid JSON"), (b"\xff", "cannot be read")]
)
def test_other_files_are_errors(content: bytes, message: str, tmp_path: Path) -> None:
    """JSON of another kind, text without JSON, and bytes without text."""
    (tmp_path / "samples.jsonl").write_bytes(content)

    with pytest.raises(DatasetError, match=message):
        read_lmms_eval(tmp_path / "samples.jsonl", "exact")


def test_a_file_above_a_gibibyte_is_an_error(tmp_path: Path) -> None:
    """It is not read; this one has no blocks on the disk."""
    (tmp_path / "samples.jsonl").touch()
    os.truncate(tmp_path / "samples.jsonl", (1 << 30) + 1)

    with pytest.raises(DatasetError, match="1,073,741,82[45]"):
        read_lmms_eval(tmp_path / "samples.jsonl", "exact")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """The error has the path."""
    with pytest.raises(DatasetError, match=r"missing\.jsonl"):
        read_lmms_eval(tmp_path / "missing.jsonl", "exact")
