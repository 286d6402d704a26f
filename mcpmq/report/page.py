"""The report as one self-contained HTML page."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from mcpmq.evaluate import Estimate
from mcpmq.report.charts import layer_charts
from mcpmq.report.report import ArtifactResult, Report, WorstSample
from mcpmq.report.tables import GROUP_LABELS, KV_CACHE_TOKENS, report_table, report_title
from mcpmq.system.escaping import escape_controls
from mcpmq.system.table import Table, format_megabytes


def render_html(report: Report, gate: Table | None = None, *, failed: bool = False) -> str:
    """Render verdict, sizes, memory, accuracy, layers and worst samples as HTML.

    `gate` has a row for every bound of a gate; without a gate the verdict is a summary.
    """
    environment = Environment(autoescape=True, finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("mcpmq.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        title=report_title(report),
        gate=gate,
        failed=failed,
        summaries=[_summary(report, result) for result in report.artifacts],
        table=report_table(report),
        megabytes=format_megabytes,
        kv_cache_tokens=KV_CACHE_TOKENS,
        group_labels=GROUP_LABELS,
        charts={result.label: layer_charts(result.layers) for result in report.artifacts},
        mark_tokens=_mark_tokens,
        interval=_interval,
        max_change=_max_perplexity_change(report),
    )


def _finalize(value: object) -> object:
    return escape_controls(value) if type(value) is str else value  # not markup that is already escaped


def _summary(report: Report, result: ArtifactResult) -> str:
    """Return size and perplexity change of one artifact as text."""
    share = result.measurement.nbytes / report.original.nbytes
    parts = [f"{format_megabytes(result.measurement.nbytes)}, {share:.0%} of the original"]
    for group, difference in result.differences.items():
        ratio = difference.perplexity_ratio
        low, value, high = ((one - 1) * 100 for one in (ratio.low, ratio.value, ratio.high))
        parts.append(f"perplexity of {GROUP_LABELS[group]} {value:+.2f} % (95 %: {low:+.2f} to {high:+.2f})")
    return f"{result.label}: {'; '.join(parts)}."


def _interval(estimate: Estimate, factor: float, digits: int) -> str:
    low, value, high = (part * factor for part in (estimate.low, estimate.value, estimate.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _mark_tokens(sample: WorstSample, tokens: Sequence[str]) -> list[tuple[str, bool]]:
    """Return every token, and whether it differs from the answer."""
    return [(token, token != expected) for token, expected in zip(tokens, sample.answer_tokens, strict=True)]


def _max_perplexity_change(report: Report) -> float:
    """Return the largest interval end of a perplexity change in percent, the scale of the drawn intervals."""
    ratios = [one.perplexity_ratio for result in report.artifacts for one in result.differences.values()]
    ends = [abs(end - 1) * 100 for ratio in ratios for end in (ratio.low, ratio.high) if end == end]
    return max(ends, default=1.0) or 1.0
