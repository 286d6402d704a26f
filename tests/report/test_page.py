"""The HTML page: content, self-containment, and the layout in a browser."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mcpmq.errors import ArtifactError
from mcpmq.report import Report
from mcpmq.report.charts import layer_charts
from mcpmq.report.page import render_html
from mcpmq.report.report import BlockInfo, SourceInfo
from mcpmq.system.table import Table
from tests.fake_reports import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br", "line"}


class Elements(HTMLParser):
    """Parse all elements with their attributes, and check that they are nested correctly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained() -> None:
    """The page has no script and no link, images are data URIs, and the text of samples is escaped."""
    page = render_html(make_report(4))
    elements = Elements(page)
    assert elements.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements.found}
    sources = [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources
    assert all(source and source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(", page)
    assert " &lt;b&gt;" in page
    assert "<mark> &lt;i&gt;</mark>" in page


def test_the_page_has_a_content_security_policy() -> None:
    """Browsers load nothing and run nothing."""
    policies = [
        attributes["content"]
        for tag, attributes in Elements(render_html(make_report(1))).found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_names_on_the_page_are_escaped() -> None:
    """HTML of a name is text, and control characters are displayed as escapes."""
    source = SourceInfo(name='<img src="x">\x1b\u202e', sha256="0" * 64)
    page = render_html(make_report(1).model_copy(update={"checkpoint": source}))
    assert "&lt;img src=&#34;x&#34;&gt;\\u001b\\u202e" in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    "image", ["https://a.example/b.png", "data:image/svg+xml;base64,AA==", "data:text/html,x", "javascript:x"]
)
def test_a_report_with_another_image_is_rejected(image: str, tmp_path: Path) -> None:
    """A page displays only raster images that are in the report."""
    report = make_report(1).model_dump(mode="json")
    report["artifacts"][0]["worst_samples"][0]["image"] = image
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ArtifactError, match="worst_samples.0.image"):
        Report.load(tmp_path)


def test_the_verdict_comes_first() -> None:
    """The page begins with a summary, a passed gate, or a failed gate with its violated bounds."""
    report = make_report(2)
    failed = Table("Gate failed: 1 of 1 bound violated", ["margin"], [("  kl", ["-1"])], ["a is < b"])
    passed = Table("Gate passed: 1 of 1 bound holds", ["margin"], [("  kl", ["+0.25"])])
    for gate, words in ((None, "Measured"), (passed, "Gate passed: 1 of 1"), (failed, "Gate failed: 1 of 1")):
        page = render_html(report, gate, failed=gate is failed)
        assert ("+0.25" in page) is (gate is passed)
        assert page.index(words) < page.index("Size on disk") < page.index("Accuracy") < page.index("Worst samples")
    assert "a is &lt; b" in page


def test_the_page_has_all_metrics() -> None:
    """Sizes, memory, intervals and layers are on the page."""
    report = make_report(1)
    page, [result] = render_html(report), report.artifacts
    divergence = result.differences["image"].kl_divergence
    assert f"{divergence.value:.4f} [{divergence.low:.4f}, {divergence.high:.4f}]" in page
    assert "language.layers.3: 0.0125" in page
    assert "head: not known" in page
    assert "4.50 bits per weight" in page
    assert "25.2" in page
    assert "<b>123</b>" in page
    before, after = (one.groups["image"].perplexity for one in (report.original, result.measurement))
    for perplexity in (before, after):
        assert f"{perplexity.value:.3f} [{perplexity.low:.3f}, {perplexity.high:.3f}]" in page


def test_answers_of_both_models_are_displayed() -> None:
    """The generated answers come before the tokens, which are folded; an older report has the tokens only."""
    report = make_report(1)
    [sample] = report.artifacts[0].worst_samples
    answered = sample.model_copy(update={"original_answer": "The sign says <b>", "artifact_answer": "A sign …"})
    result = report.artifacts[0].model_copy(update={"worst_samples": (answered,)})
    page, older = render_html(report.model_copy(update={"artifacts": (result,)})), render_html(report)

    assert "The sign says &lt;b&gt;" in page
    assert page.index("answer of the original") < page.index("A sign …") < page.index("Token by token")
    assert "answer of the original" not in older
    assert '<details open><summary class="quiet">Token by token' in older


def test_several_artifacts_have_a_chart_of_size_and_quality() -> None:
    """Every artifact has a point with its letter; one artifact has no chart."""
    page = render_html(make_report(3))

    assert page.count('<circle class="point"') == 3
    assert "C: onnx phone-int8" in page
    assert "Size and quality" not in render_html(make_report(1))


def test_unquantized_norms_are_not_in_the_charts() -> None:
    """The last norm of a language model has no bar; a quantized weight of a component has one."""
    report = make_report(1)
    layers = report.artifacts[0].layers
    norm = BlockInfo(name="language", bits_per_weight=16.0, error=0.0)
    table = BlockInfo(name="vision", bits_per_weight=9.3, error=0.002)
    charts = layer_charts(layers.model_copy(update={"blocks": (*layers.blocks, norm, table)}))

    assert all("language: " not in drawing and "vision: " in drawing for _, drawing in charts)


def test_unknown_intervals_are_not_nan() -> None:
    """The figures of one sample have no interval and no bar."""
    report = make_report(2)
    one = report.artifacts[0].differences["text"]
    unknown = {
        name: value.model_copy(update={"low": math.nan, "high": math.nan})
        for name, value in one
        if hasattr(value, "low")
    }
    differences = {**report.artifacts[0].differences, "text": one.model_copy(update=unknown)}
    result = report.artifacts[0].model_copy(update={"differences": differences})
    page = render_html(report.model_copy(update={"artifacts": (result, report.artifacts[1])}))

    assert "nan" not in page.lower().replace("finance", "")
    assert "[n/a, n/a]" in page


MEASURING = """
<body><script>
addEventListener("load", () => {
  const root = document.querySelector("iframe").contentDocument.documentElement;
  const background = getComputedStyle(root.querySelector("body")).backgroundColor;
  document.title = [root.scrollWidth, root.querySelectorAll("rect").length, background].join("|");
});
</script><iframe width="390" height="800" srcdoc="PAGE"></iframe>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="requires Chromium, e.g. `apt-get install chromium`")
@pytest.mark.parametrize(("scheme", "background"), [("1", "rgb(251, 250, 248)"), ("0", "rgb(20, 22, 26)")])
def test_the_layout_fits_a_phone_screen(scheme: str, background: str, tmp_path: Path) -> None:
    """In a browser no element is wider than the screen, all bars are drawn, and both color schemes apply."""
    report = make_report(2)
    (tmp_path / "page.html").write_text(MEASURING.replace("PAGE", html.escape(render_html(report))))
    document = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--dump-dom",
            str(tmp_path / "page.html"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    found = re.search(r"<title>(\d+)\|(\d+)\|(.*?)</title>", document)
    assert found
    assert int(found[1]) <= 390
    assert int(found[2]) == 2 * 2 * 13
    assert found[3] == background
