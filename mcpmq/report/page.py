"""The report as a page of its own: nothing is fetched from elsewhere, so it can be sent to anybody."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from mcpmq.evaluate import Estimate
from mcpmq.report.charts import layer_pictures
from mcpmq.report.report import Entry, Report, WorstSample
from mcpmq.report.tables import CONTEXT, table_of, title_of
from mcpmq.system.table import megabytes


def page_of(report: Report, violated: Sequence[str] | None = None) -> str:
    """HTML: the verdict first, then sizes and memory, accuracy, layers, and the worst samples.

    `violated` are the lines of a gate, none if all its bounds hold; without a gate the verdict is what was measured.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("mcpmq.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        title=title_of(report),
        violated=violated,
        sentences=[_sentence(report, entry) for entry in report.artifacts],
        table=table_of(report),
        megabytes=megabytes,
        context=CONTEXT,
        pictures={entry.label: layer_pictures(entry.layers) for entry in report.artifacts},
        marked=_marked,
        interval=_interval,
        widest=_widest(report),
    )


def _sentence(report: Report, entry: Entry) -> str:
    """What one artifact is and costs."""
    share = entry.measurement.nbytes / report.original.nbytes
    parts = [f"{megabytes(entry.measurement.nbytes)}, {share:.0%} of the original"]
    for kind, difference in entry.differences.items():
        ratio = difference.perplexity_ratio
        low, value, high = ((one - 1) * 100 for one in (ratio.low, ratio.value, ratio.high))
        parts.append(f"{kind} perplexity {value:+.2f} % (95 %: {low:+.2f} to {high:+.2f})")
    return f"{entry.label}: {'; '.join(parts)}."


def _interval(one: Estimate, factor: float) -> str:
    low, value, high = (part * factor for part in (one.low, one.value, one.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _marked(sample: WorstSample, texts: Sequence[str]) -> list[tuple[str, bool]]:
    """Pieces of a text, and whether each is not the right answer's."""
    return [(text, text != right) for text, right in zip(texts, sample.answer, strict=True)]


def _widest(report: Report) -> float:
    """The largest end of an interval of a rise of perplexity, in percent: what the drawn intervals are scaled to."""
    ratios = [one.perplexity_ratio for entry in report.artifacts for one in entry.differences.values()]
    ends = [abs(end - 1) * 100 for ratio in ratios for end in (ratio.low, ratio.high) if end == end]
    return max(ends, default=1.0) or 1.0
