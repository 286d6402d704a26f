"""Task scores in tables, pages, merged reports and comparisons."""

import pytest

from mcpmq.errors import ArtifactError
from mcpmq.evaluate import TaskScores
from mcpmq.evaluate.task_scores import compare_scores
from mcpmq.report import Report, accuracy_table, changes_table, render_html, report_table, summary_table
from mcpmq.report.task_tables import task_rows
from tests.fake_reports import make_report

SAMPLES = range(40)


def scores(losses: int, samples: range = SAMPLES) -> TaskScores:
    """Return scores of 1 for the original, and 0 for the first samples of the artifact."""
    return compare_scores(
        "exact", {f"{one}": 1.0 for one in samples}, {f"{one}": float(one >= losses) for one in samples}
    )


def with_scores(report: Report, *tasks: dict[str, TaskScores]) -> Report:
    """Return the report with task scores, one dict for every artifact."""
    results = zip(report.artifacts, tasks, strict=True)
    artifacts = tuple(result.model_copy(update={"task_scores": one}) for result, one in results)
    return report.model_copy(update={"artifacts": artifacts})


def test_every_task_has_a_score_and_a_change() -> None:
    """Scores of the original and the artifact, then the change with its half interval; empty without scores."""
    rows = task_rows(with_scores(make_report(2), {"ocr": scores(10), "vqa": scores(0)}, {"ocr": scores(0)}))

    assert [name for name, _ in rows] == ["score, ocr exact", "  change", "score, vqa exact", "  change"]
    (original, first, second), changes = rows[0][1], rows[1][1]
    assert (original, second) == ("1.00 ±0.00", "1.00 ±0.00")
    assert first.startswith("0.75 ±0.1")
    assert changes[0] == ""
    assert changes[1].startswith("-0.25 ±0.1")
    assert [cells[2] for _, cells in rows[2:]] == ["", ""]


def test_scores_are_in_all_tables() -> None:
    """The whole table, its most important rows, and the model card have scores and their definition."""
    report = with_scores(make_report(1), {"ocr": scores(10)})
    for table in (report_table(report), summary_table(report), accuracy_table(report)):
        names = [name for name, _ in table.rows]
        assert names[names.index("score, ocr exact") + 1] == "  change"
        assert any(note.startswith("score: mean of the samples of a task") for note in table.notes)
    assert not any(name.startswith("score") for name, _ in report_table(make_report(1)).rows)


def test_scores_are_on_the_page() -> None:
    """A section of its own, with escaped names; no section without scores."""
    page = render_html(with_scores(make_report(1), {"<b>": scores(10)}))

    assert "<h2>Task scores</h2>" in page
    assert "score, &lt;b&gt; exact" in page
    assert "-0.25 ±0.1" in page
    assert "Task scores" not in render_html(make_report(1))


def test_few_samples_have_a_note() -> None:
    """The interval of a task with fewer than 20 samples is wide."""
    table = summary_table(with_scores(make_report(1), {"ocr": scores(2, range(19))}))

    assert "few samples: ocr: 19 samples, fewer than 20" in table.notes


def test_reports_keep_scores() -> None:
    """JSON has the scores of every sample."""
    report = with_scores(make_report(1), {"ocr": scores(10)})

    again = Report.model_validate_json(report.model_dump_json())

    assert again == report
    assert again.artifacts[0].task_scores["ocr"].scores["9"] == (1.0, 0.0)


def test_two_reports_are_compared() -> None:
    """The change between two artifacts is paired by sample."""
    before, after = (with_scores(make_report(1), {"ocr": scores(losses)}) for losses in (0, 10))
    table = changes_table(before, after)

    assert table is not None
    assert dict(table.rows)["score, ocr"][0].startswith("-0.25 ±0.1")
    assert changes_table(make_report(1), after) is not None


def test_scores_of_two_runs_of_the_original_are_not_merged() -> None:
    """The column of the original would have two values."""
    first = with_scores(make_report(1), {"ocr": scores(0)})
    other = with_scores(make_report(1), {"ocr": compare_scores("exact", {"1": 0.0, "2": 1.0}, {"1": 0.0, "2": 1.0})})

    assert len(Report.merge([first, first]).artifacts) == 2
    with pytest.raises(ArtifactError, match="different scores of the original on the task `ocr`"):
        Report.merge([first, other])
