"""The result of a search as one self-contained HTML page: recipe, Pareto front, and the scheme of every weight."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase

from mcpmq.evaluate import Estimate
from mcpmq.mixed_precision import SearchResult
from mcpmq.mixed_precision.front import FrontPoint
from mcpmq.report.charts import scatter_chart
from mcpmq.report.page import render_page
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import check_file, output_errors
from mcpmq.system.table import format_megabytes

PAGE_BEGINNING = "<!doctype html>\n"


def check_search_page(html: Path | None, inputs: Mapping[Path, str]) -> None:
    """Check that the page of a search can be written.

    Raises:
        OutputError: it is another file, or inside of an input.
    """
    if html:
        check_file(html, inputs, PAGE_BEGINNING)


def write_search_page(result: SearchResult, html: Path | None) -> None:
    """Write the page of a search.

    Raises:
        OutputError: it cannot be written.
    """
    if html:
        with output_errors(html):
            write_durably(html, render_search(result))


def render_search(result: SearchResult) -> str:
    """Render sizes, the Pareto fronts with and without structured compression, weights and recipe as HTML."""
    shown = [point for point in result.front if point.nbytes > 0 and point.rank_score > 0]
    return render_page(
        files("mcpmq.ui").joinpath("search.html").read_text(encoding="utf-8"),
        title=f"recipe {result.recipe.name}",
        table=result.to_table(),
        chart=front_chart(shown, result.resource),
        resource=result.resource,
        points=list(zip(ascii_uppercase, shown, strict=False)),
        megabytes=format_megabytes,
        options=result.options,
        rank_score=result.rank_score,
        recipe=result.to_toml(),
    )


def front_chart(points: Sequence[FrontPoint], resource: str) -> str | None:
    """Return size against rank score; the line of recipes with structured compression is dashed."""
    scores = [
        Estimate(value=point.rank_score, standard_error=0.0, low=point.rank_score, high=point.rank_score)
        for point in points
    ]
    fronts = [
        [at for at, point in enumerate(points) if (point.structure is not None) is structured]
        for structured in (False, True)
    ]
    sized = [(point.nbytes, score) for point, score in zip(points, scores, strict=True)]
    return scatter_chart(sized, ascii_uppercase[: len(points)], fronts, resource, "rank score")
