"""Sample files of lmms-eval: one JSON object for every document, with the scores of its task."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcpmq.errors import DatasetError
from mcpmq.system.input_file import read_text_file
from mcpmq.system.text_file import split_lines

MAX_NBYTES = 1 << 30
HINT = "give a file `*_samples_TASK.jsonl`, which lmms-eval writes with `--log_samples`"


def read_lmms_eval(file: Path, metric: str) -> dict[str, float]:
    """Return the scores of a task by document id.

    The format is that of `EvaluationTracker.save_results_samples` of lmms-eval 0.7: the results of a task are keys of
    every line. A result is a number, or an object with the number `score`.

    Raises:
        DatasetError: the file is missing, a line is not a sample with this metric, or a document is given twice.
    """
    scores: dict[str, float] = {}
    for where, sample in _samples(file, read_text_file(file, DatasetError, HINT, MAX_NBYTES)):
        name = str(sample.get("doc_id", ""))
        if not name or not name.isprintable():
            raise DatasetError(f"{where} has no `doc_id` of printable characters", HINT)
        if name in scores:
            raise DatasetError(f"{where}: the document `{name}` is given twice", HINT)
        scores[name] = _score(where, sample, metric)
    if not scores:
        raise DatasetError(f"`{file}` has no samples", HINT)
    return scores


def _samples(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the number of every line as text, and its object."""
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        where = f"`{file}` line {number}"
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where} is not valid JSON: {error}", HINT) from error
        if not isinstance(sample, dict):
            raise DatasetError(f"{where} is not a JSON object", HINT)
        yield where, sample


def _score(where: str, sample: dict[str, Any], metric: str) -> float:
    if metric not in sample:
        known = ", ".join(f"`{name}`" for name in sample)
        raise DatasetError(f"{where} has no `{metric}`; it has {known}", "give one of these keys as `metric`")
    result = sample[metric]
    value = result.get("score") if isinstance(result, dict) else result
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise DatasetError(f"{where}: `{metric}` is not a finite number", "give another key as `metric`")
    return float(value)
