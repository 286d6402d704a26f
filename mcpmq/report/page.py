"""The report as one self-contained HTML page."""

import math
from collections.abc import Sequence
from importlib.resources import files
from string import ascii_uppercase

from jinja2 import Environment, FunctionLoader

from mcpmq.evaluate import Estimate
from mcpmq.report.charts import layer_charts, size_chart
from mcpmq.report.numbers import UNKNOWN, perplexity_cells, ratio_cells, share_cells
from mcpmq.report.report import ArtifactResult, Report, WorstSample
from mcpmq.report.tables import GROUP_LABELS, machine_table, report_table, report_title, sample_notes
from mcpmq.report.task_tables import task_table
from mcpmq.system.escaping import escape_controls
from mcpmq.system.table import Table, format_megabytes


def render_html(report: Report, gate: Table | None = None, *, failed: bool = False) -> str:
    """Render verdict, sizes, memory, accuracy, layers and worst samples as HTML.

    `gate` has a row for every bound of a gate; without a gate the verdict is a summary.
    """
    return render_page(
        _read("page.html"),
        has_images=True,
        report=report,
        title=report_title(report),
        gate=gate,
        failed=failed,
        summaries=[_summary(report, result) for result in report.artifacts],
        table=report_table(report),
        machine_table=machine_table(report),
        task_table=task_table(report),
        sample_notes=sample_notes(report),
        size_chart=size_chart(report),
        letters=ascii_uppercase,
        megabytes=format_megabytes,
        group_labels=GROUP_LABELS,
        charts={result.label: layer_charts(result.layers) for result in report.artifacts},
        mark_tokens=_mark_tokens,
        interval=_interval,
        perplexity=lambda estimate: perplexity_cells([estimate])[0],
        share=lambda estimate: share_cells([estimate])[0],
        change=lambda estimate: ratio_cells([estimate])[0],
        track=_track,
        max_change=_max_perplexity_change(report),
    )


def render_page(template: str, **values: object) -> str:
    """Render a template, which may include `head.html`, with the style of a report; texts are escaped.

    The head has the values `title`, `has_images`, and the seconds of `refresh` if the page reloads itself.
    """
    loader = FunctionLoader(_read)
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(template).render(style=_read("page.css"), **values)


def _read(name: str) -> str:
    return files("mcpmq.report").joinpath(name).read_text(encoding="utf-8")


def _finalize(value: object) -> object:
    return escape_controls(value) if type(value) is str else value  # not markup that is already escaped


def _summary(report: Report, result: ArtifactResult) -> str:
    """Return size and perplexity change of one artifact as text."""
    share = result.measurement.nbytes / report.original.nbytes
    parts = [f"{format_megabytes(result.measurement.nbytes)}, {share:.0%} of the original"]
    for group, difference in result.differences.items():
        [change] = ratio_cells([difference.perplexity_ratio])
        parts.append(f"perplexity of {GROUP_LABELS[group]} {change} %")
    return f"{result.label}: {'; '.join(parts)}."


def _interval(estimate: Estimate, factor: float, digits: int) -> str:
    low, value, high = (
        f"{part * factor:.{digits}f}" if math.isfinite(part) else UNKNOWN
        for part in (estimate.low, estimate.value, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def _track(ratio: Estimate, maximum: float) -> dict[str, float] | None:
    """Return left end, width and center in percent of a drawn interval; None if it is not known."""
    ends = [(end - 1) * 100 / maximum for end in (ratio.low, ratio.high, ratio.value)]
    if not all(map(math.isfinite, ends)):
        return None
    low, high, value = (50 + 48 * end for end in ends)
    return {"left": low, "width": high - low, "value": value}


def _mark_tokens(sample: WorstSample, tokens: Sequence[str]) -> list[tuple[str, bool]]:
    """Return every token, and whether it differs from the answer."""
    return [(token, token != expected) for token, expected in zip(tokens, sample.answer_tokens, strict=True)]


def _max_perplexity_change(report: Report) -> float:
    """Return the largest interval end of a perplexity change in percent, the scale of the drawn intervals."""
    ratios = [one.perplexity_ratio for result in report.artifacts for one in result.differences.values()]
    ends = [abs(end - 1) * 100 for ratio in ratios for end in (ratio.low, ratio.high) if end == end]
    return max(ends, default=1.0) or 1.0
