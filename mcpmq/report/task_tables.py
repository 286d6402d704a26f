"""Rows of task scores: the mean of every model, and the change from the original."""

from mcpmq.evaluate import TaskScores
from mcpmq.evaluate.sample_size import MIN_EVALUATION_SAMPLES
from mcpmq.evaluate.task_scores import score_changes
from mcpmq.report.numbers import score_cells, score_change_cells
from mcpmq.report.report import ArtifactResult, Report
from mcpmq.system.table import Row, Table

SCORE = "score, "  # begin of the name of a row
TASK_NOTE = "score: mean of the samples of a task, computed by another program; changes are paired by sample"


def task_rows(report: Report) -> list[Row]:
    """Return score and change of every task, with a column for the original and for every artifact."""
    rows: list[Row] = []
    for task, first in _tasks(report).items():
        found = [result.task_scores.get(task) for result in report.artifacts]
        scores = score_cells([first.original, *(one.artifact if one else None for one in found)])
        changes = score_change_cells([None, *(one.score_change if one else None for one in found)])
        rows += [(f"{SCORE}{task} {first.metric}", scores), ("  change", changes)]
    return rows


def task_table(report: Report) -> Table | None:
    """Return the scores of all tasks; None without scores."""
    names = ["original", *(result.label for result in report.artifacts)]
    rows = task_rows(report)
    return Table("Task scores", names, rows, task_notes(report)) if rows else None


def task_notes(report: Report) -> list[str]:
    """Return the definition of scores, and a note for every task with few samples; none without scores."""
    tasks = _tasks(report)
    few = [
        f"few samples: {task}: {len(one.scores)} samples, fewer than {MIN_EVALUATION_SAMPLES}"
        for task, one in tasks.items()
        if len(one.scores) < MIN_EVALUATION_SAMPLES
    ]
    return [TASK_NOTE, *few] if tasks else []


def _tasks(report: Report) -> dict[str, TaskScores]:
    """Return all tasks, with the scores of the first artifact that has some."""
    tasks: dict[str, TaskScores] = {}
    for result in report.artifacts:
        for task, found in result.task_scores.items():
            tasks.setdefault(task, found)
    return tasks


def task_change_rows(pairs: list[tuple[ArtifactResult, ArtifactResult]]) -> list[Row]:
    """Return the changes of scores between the artifacts of two reports, for tasks with the same samples."""
    found = [score_changes(before.task_scores, after.task_scores) for before, after in pairs]
    tasks = dict.fromkeys(task for one in found for task in one)
    return [(f"{SCORE}{task}", score_change_cells([one.get(task) for one in found])) for task in tasks]
