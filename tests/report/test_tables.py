"""Numbers and signs in the tables of reports."""

import pytest

from mcpmq.evaluate import Estimate
from mcpmq.report import changes_table, report_table
from mcpmq.report.numbers import megabyte_cells, nats_cells, perplexity_cells, share_cells
from mcpmq.report.report import Report
from mcpmq.report.tables import sample_notes
from tests.fake_reports import make_report


def estimate(value: float, half_width: float) -> Estimate:
    """Return an estimate with a symmetric interval."""
    return Estimate(value=value, standard_error=half_width / 2, low=value - half_width, high=value + half_width)


def rows_of(report: Report, first: str) -> dict[str, str]:
    """Return the cells of the first artifact in a row and its detail rows."""
    rows = list(report_table(report).rows)
    start = next(number for number, (name, _) in enumerate(rows) if name == first)
    details = [row for row in rows[start + 1 : start + 6] if row[0].startswith("  ")]
    return {name.strip(): cells[1] for name, cells in [rows[start], *details]}


def test_metrics_are_formatted_with_units_and_signs() -> None:
    """Ratios are signed changes in percent, divergences are in nats with four decimals, shares are in percent."""
    report = make_report(1)
    [result] = report.artifacts
    difference = result.differences["image"].model_copy(
        update={
            "perplexity_ratio": estimate(1.0123, 0.0045),
            "kl_divergence": estimate(0.00512, 0.00138),
            "top_1_agreement": estimate(0.9752, 0.006),
        }
    )
    changed = result.model_copy(update={"differences": {**result.differences, "image": difference}})

    rows = rows_of(report.model_copy(update={"artifacts": (changed,)}), "perplexity, images")

    assert rows["change, %"] == "+1.23 ±0.45"
    assert rows["mean KLD, nats"] == "0.0051 ±0.0014"
    assert rows["same top-1, %"] == "97.5 ±0.6"


@pytest.mark.parametrize(
    ("ratio", "half_width", "text"),
    [
        (0.98, 0.0045, "-2.00 ±0.45"),
        (1.234, 0.0112, "+23.4 ±1.1"),
        (3.0, 0.152, "+200.0 ±15.2"),
        (1.0, 0.0, "+0.00 ±0.00"),
        (0.98, float("nan"), "-2.00 ±n/a"),
        (float("nan"), float("nan"), "n/a"),
    ],
)
def test_decimals_follow_the_interval(ratio: float, half_width: float, text: str) -> None:
    """A change has a sign and two significant digits of its half interval, with one or two decimals; no NaN."""
    report = make_report(1)
    [result] = report.artifacts
    difference = result.differences["text"].model_copy(update={"perplexity_ratio": estimate(ratio, half_width)})
    changed = result.model_copy(update={"differences": {**result.differences, "text": difference}})

    rows = rows_of(report.model_copy(update={"artifacts": (changed,)}), "perplexity, text")

    assert rows["change, %"] == text


def test_all_cells_of_a_row_have_the_same_decimals() -> None:
    """The smallest half interval and the smallest size set the decimals of a row."""
    estimates = [estimate(0.0051, 0.0014), None, estimate(0.00046, 0.000105)]

    assert nats_cells(estimates) == ["0.00510 ±0.00140", "", "0.00046 ±0.00010"]
    assert share_cells([estimate(0.975, 0.006), estimate(0.9992, 0.0002)]) == ["97.50 ±0.60", "99.92 ±0.02"]
    assert perplexity_cells([estimate(12345.6, 789.0)]) == ["12,346 ±789"]
    assert megabyte_cells([20_420_000, 9_050_000, None]) == ["20.42", "9.05", ""]
    assert megabyte_cells([16_234_567_890, 4_567_890_000]) == ["16,235", "4,568"]
    assert megabyte_cells([60_000, 0]) == ["0.06", "0.00"]


def test_changes_are_later_minus_earlier() -> None:
    """The total size of the second report is compared with that of the first."""
    earlier = make_report(1)
    [result] = earlier.artifacts
    larger = {name: nbytes * 2 for name, nbytes in result.measurement.nbytes_by_component.items()}
    measurement = result.measurement.model_copy(update={"nbytes_by_component": larger})
    later = earlier.model_copy(update={"artifacts": (result.model_copy(update={"measurement": measurement}),)})

    growing, shrinking = changes_table(earlier, later), changes_table(later, earlier)

    assert growing is not None
    assert shrinking is not None
    assert dict(growing.rows)["total size, %"] == ["+100.00"]
    assert dict(shrinking.rows)["total size, %"] == ["-50.00"]


def test_reports_without_a_common_artifact_have_no_changes() -> None:
    """Artifacts are matched by format and recipe."""
    report = make_report(1)
    other = report.model_copy(update={"artifacts": (report.artifacts[0].model_copy(update={"recipe": "other"}),)})

    assert changes_table(report, other) is None


@pytest.mark.parametrize("missing", ["image", "nonsquare"])
def test_engine_resized_images_are_images_of_a_calibration_set(missing: str) -> None:
    """A set with one of both groups has images, in the calibration set and in the evaluation set."""
    report = make_report(1)
    [result] = report.artifacts
    groups = {group: one.kl_divergence for group, one in result.differences.items()}
    fewer = {group: one for group, one in groups.items() if group != missing}
    changed = result.model_copy(update={"calibration_kl_divergence": fewer})
    assert not [note for note in sample_notes(report.model_copy(update={"artifacts": (changed,)})) if "calib" in note]

    measured = {group: one for group, one in result.differences.items() if group != missing}
    changed = result.model_copy(update={"calibration_kl_divergence": groups, "differences": measured})
    assert not [note for note in sample_notes(report.model_copy(update={"artifacts": (changed,)})) if "calib" in note]
