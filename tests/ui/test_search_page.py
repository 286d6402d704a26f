"""Pages of searches."""

import re
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import OutputError
from mcpmq.mixed_precision import Budget, SearchResult
from mcpmq.mixed_precision.choices import Option
from mcpmq.mixed_precision.front import FrontPoint
from mcpmq.mixed_precision.search import RecipeSearch
from mcpmq.recipe import Recipe
from mcpmq.ui.search_page import check_search_page, front_chart, render_search, write_search_page

POINTS = (
    FrontPoint(4_000_000, 0.5),
    FrontPoint(8_000_000, 0.05),
    FrontPoint(3_000_000, 0.7, "without <language.layers.1>"),
    FrontPoint(8_000_000, 0.05, ""),
)


@pytest.fixture
def result(tiny_checkpoint: Path) -> SearchResult:
    """A result with a front and a weight."""
    recipe = Recipe.load("phone-int4")
    search = RecipeSearch(Checkpoint.open(tiny_checkpoint), recipe, "gguf", Budget(file_nbytes=10**8))
    options = {"language.layers.0.attention.q": Option("q4_k", 1_500_000, 0.025)}
    return SearchResult(recipe, search.estimate({}), options, {}, front=POINTS)


def test_the_page_has_both_fronts_every_weight_and_the_recipe(result: SearchResult) -> None:
    """Texts are escaped; a point is a letter in the chart and a line in the legend."""
    page = render_search(result)

    assert page.startswith("<!doctype html>\n")
    assert page.count("<circle") == 4
    assert page.count("<polyline") == 2
    assert page.count("stroke-dasharray") == 1
    assert "C: 3.00 MB, rank score 0.7, without &lt;language.layers.1&gt;" in page
    assert "D: 8.00 MB, rank score 0.05, schemes alone" in page
    assert re.search(r"attention\.q</th><td>q4_k</td><td>1\.50 MB</td><td>0\.025</td><td>100\.0 %", page)
    assert "[weights]" in page
    assert "default-src 'none'" in page


def test_the_chart_has_a_point_for_every_size_and_score() -> None:
    """The largest is right, that of the largest score is high; fewer than two points have no chart."""
    chart = front_chart(POINTS[:2], "file size")

    assert chart is not None
    (first_x, first_y), (second_x, second_y) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert float(first_x) < float(second_x)
    assert float(first_y) < float(second_y)  # downwards
    assert "0.5 rank score" in chart
    assert "file size" in chart
    assert front_chart(POINTS[:1], "file size") is None


def test_a_search_without_a_front_has_no_chart(result: SearchResult, tmp_path: Path) -> None:
    """The page is written over an earlier one, and not over another file."""
    alone = SearchResult(result.recipe, result.estimate, result.options, {})
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    for _ in range(2):
        check_search_page(page, {})
        write_search_page(alone, page)
    other.write_text("notes")

    assert "<svg" not in page.read_text()
    with pytest.raises(OutputError, match="was not written by this command"):
        check_search_page(other, {})
    check_search_page(None, {})
