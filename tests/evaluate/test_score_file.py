"""Score files: scores of an original and its artifacts, and files that do not fit them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.evaluate.score_file import read_scores
from mcpmq.quantized_model import QuantizedModel
from tests.evaluate.test_lmms_eval import write_samples

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> Checkpoint:
    """Return the original."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture
def content(original: Checkpoint, tiny_int4: QuantizedModel) -> dict[str, Any]:
    """Return the content of a valid score file."""
    task = {
        "name": "ocr",
        "metric": "exact",
        "original": {"sha256": original.sha256, "scores": {"a": 1, "b": 0.5, "c": 1}},
        "artifacts": [{"sha256": tiny_int4.artifact.sha256, "scores": {"c": 0, "a": 1, "b": 0.5}}],
    }
    return {"schema_version": 1, "tasks": [task]}


def read(content: object, folder: Path, original: Checkpoint, quantized: QuantizedModel) -> Any:
    """Write the content as JSON, read the file, and return the scores of the artifact by task."""
    (folder / "scores.json").write_text(content if isinstance(content, str) else json.dumps(content))
    artifact = quantized.artifact
    return read_scores(folder / "scores.json", original, [artifact])[artifact.sha256]


def test_scores_are_compared_by_sample(
    content: dict[str, Any], tmp_path: Path, original: Checkpoint, tiny_int4: QuantizedModel
) -> None:
    """The order of samples is of no importance, and entries of other artifacts are ignored."""
    content["tasks"][0]["artifacts"].append({"sha256": "0" * 64, "scores": "missing.jsonl"})
    found = read(content, tmp_path, original, tiny_int4)

    assert list(found) == ["ocr"]
    assert found["ocr"].scores == {"a": (1.0, 1.0), "b": (0.5, 0.5), "c": (1.0, 0.0)}
    assert found["ocr"].score_change.value == pytest.approx(-1 / 3)


def test_scores_can_be_sample_files_of_lmms_eval(
    content: dict[str, Any], tmp_path: Path, original: Checkpoint, tiny_int4: QuantizedModel
) -> None:
    """Paths are relative to the score file; the metric is the key of the score in every line."""
    (tmp_path / "int4").mkdir()
    write_samples(tmp_path / "original.jsonl", {"doc_id": 0, "exact": 1.0}, {"doc_id": 1, "exact": 1.0})
    write_samples(tmp_path / "int4" / "s.jsonl", {"doc_id": 0, "exact": 1.0}, {"doc_id": 1, "exact": 0.0})
    content["tasks"][0]["original"]["scores"] = "original.jsonl"
    content["tasks"][0]["artifacts"][0]["scores"] = "int4/s.jsonl"

    assert read(content, tmp_path, original, tiny_int4)["ocr"].scores == {"0": (1.0, 1.0), "1": (1.0, 0.0)}


def _task(content: dict[str, Any]) -> Any:
    return content["tasks"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=2), "schema_version: Input should be 1"),
        (lambda c: c.update(task="x"), "task: Extra inputs are not permitted"),
        (lambda c: _task(c).update(metrics="x"), "tasks.0.metrics: Extra inputs are not permitted"),
        (lambda c: c["tasks"].clear(), "tasks: List should have at least 1 item"),
        (lambda c: c["tasks"].append(_task(c)), "has the task `ocr` twice"),
        (lambda c: _task(c).update(name="image"), "`image` is the name of other metrics in gates"),
        (lambda c: _task(c).update(name="a\x1b"), "it has a control character"),
        (lambda c: _task(c)["original"]["scores"].update(a=float("nan")), "a: Input should be a finite number"),
        (lambda c: _task(c)["original"]["scores"].update(a="1"), "a: Input should be a valid number"),
        (lambda c: _task(c)["original"]["scores"].update(a=True), "a: Input should be a valid number"),
        (lambda c: _task(c)["original"]["scores"].update(a=10**400), "a: Input should be"),
        (lambda c: _task(c)["original"].update(scores="\0"), "cannot be read"),
        (lambda c: _task(c)["original"]["scores"].update({"\ud800": 1}), "is not valid JSON"),
        (lambda c: _task(c)["original"]["scores"].clear(), "should have at least 1 item"),
        (lambda c: _task(c)["original"]["scores"].update(d=1), "1 samples have a score of one model only, such as `d`"),
        (lambda c: _task(c)["artifacts"][0]["scores"].pop("a"), "such as `a` of the original"),
        (lambda c: _task(c)["original"].update(sha256="0" * 64), "the original has the SHA-256 000000000000"),
        (lambda c: _task(c)["artifacts"][0].update(sha256="f" * 64), "the entries are for ffffffffffff"),
        (lambda c: _task(c)["artifacts"].append(_task(c)["artifacts"][0]), "2 entries for"),
        (lambda c: _task(c)["original"].update(scores="missing.jsonl"), "missing.jsonl"),
        (lambda c: _task(c)["original"].update(scores={str(n): 1 for n in range(10_001)}), "10,001 samples, more than"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(
    change: Change,
    message: str,
    content: dict[str, Any],
    tmp_path: Path,
    original: Checkpoint,
    tiny_int4: QuantizedModel,
) -> None:
    """Unknown keys, NaN, other samples, other models, and repeated tasks; the error has file, reason and hint."""
    change(content)

    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read(content, tmp_path, original, tiny_int4)

    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "Input should be a valid dictionary"),
        ('{"schema_version": 1, "schema_version": 1, "tasks": []}', "a key is given twice"),
    ],
)
def test_another_file_is_an_error(
    text: str, message: str, tmp_path: Path, original: Checkpoint, tiny_int4: QuantizedModel
) -> None:
    """Broken JSON, JSON of another kind, and a repeated key, so also a repeated sample."""
    with pytest.raises(DatasetError, match=message):
        read(text, tmp_path, original, tiny_int4)


def test_a_missing_file_is_an_error(tmp_path: Path, original: Checkpoint, tiny_int4: QuantizedModel) -> None:
    """The error has the path."""
    with pytest.raises(DatasetError, match=r"scores\.json"):
        read_scores(tmp_path / "scores.json", original, [tiny_int4.artifact])
