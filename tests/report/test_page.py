"""The page of a report: what it says, that it fetches nothing, and how a real browser lays it out."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mcpmq.report.page import page_of
from tests.fake_reports import invented_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br", "line"}


class Elements(HTMLParser):
    """Every element with its attributes; closed in the order they were opened."""

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


def test_a_page_is_well_formed_and_fetches_nothing() -> None:
    """No script, no link, images inside the page; and the text of a sample is text, not markup."""
    page = page_of(invented_report(4))
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


def test_the_verdict_comes_first() -> None:
    """What was measured; or that the gate passed, or what it found."""
    report = invented_report(2)
    for violated, words in ((None, "Measured"), ([], "The gate passed"), (["a is < b"], "The gate failed: 1 violated")):
        page = page_of(report, violated)
        assert page.index(words) < page.index("Size on disk") < page.index("Accuracy") < page.index("Worst samples")
    assert "a is &lt; b" in page


def test_every_figure_of_the_table_is_on_the_page() -> None:
    """Sizes, memory, intervals, layers."""
    report = invented_report(1)
    page, [entry] = page_of(report), report.artifacts
    divergence = entry.differences["image"].kl_divergence
    assert f"{divergence.value * 1000:.2f} [{divergence.low * 1000:.2f}, {divergence.high * 1000:.2f}]" in page
    assert "language.layers.3: 0.0125" in page
    assert "head: not known" in page
    assert "4.50 bits per weight" in page
    assert "25.2 MB" in page
    assert "123 MB" in page


MEASURING = """
<body><script>
addEventListener("load", () => {
  const root = document.querySelector("iframe").contentDocument.documentElement;
  const ground = getComputedStyle(root.querySelector("body")).backgroundColor;
  document.title = [root.scrollWidth, root.querySelectorAll("rect").length, ground].join("|");
});
</script><iframe width="390" height="800" srcdoc="PAGE"></iframe>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; `apt-get install chromium` brings one")
@pytest.mark.parametrize(("scheme", "ground"), [("1", "rgb(251, 250, 248)"), ("0", "rgb(20, 22, 26)")])
def test_a_browser_lays_it_out_at_the_width_of_a_phone(scheme: str, ground: str, tmp_path: Path) -> None:
    """Nothing is wider than the screen, all bars are drawn, and light and dark have their grounds."""
    report = invented_report(2)
    (tmp_path / "page.html").write_text(MEASURING.replace("PAGE", html.escape(page_of(report))))
    drawn = subprocess.run(
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
    found = re.search(r"<title>(\d+)\|(\d+)\|(.*?)</title>", drawn)
    assert found
    assert int(found[1]) <= 390
    assert int(found[2]) == 2 * 2 * 13
    assert found[3] == ground
