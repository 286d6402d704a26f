"""Contact sheets of sample sets."""

from pathlib import Path

import pytest

from mcpmq.dataset import Sample, SampleSet, Turn
from mcpmq.system.table import Table
from mcpmq.ui import contact_sheet
from mcpmq.ui.contact_sheet import render_contact_sheet


def test_a_page_shows_counts_images_and_texts(mixed_set: SampleSet) -> None:
    """Every image is inside of the page, with its size; nothing is loaded from elsewhere."""
    page = render_contact_sheet(mixed_set, Table("set x", [""], [("samples", ["9"])]))

    assert page.startswith(contact_sheet.PAGE_BEGINNING)
    assert page.count("data:image/jpeg;base64,") == 6
    assert page.count("<article>") == 9
    assert "56x100" in page
    assert "The sign says 3 and no no no more." in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


def test_texts_are_escaped_and_long_sets_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup and control characters of a set are shown as text; the page has the number of hidden samples."""
    monkeypatch.setattr(contact_sheet, "MAX_SAMPLES", 2)
    turns = (Turn("user", ("<script>a</script>\x1b",)), Turn("assistant", ("b" * 1000,)))
    samples = SampleSet(tmp_path, tuple(Sample(f"<i>{number}", turns) for number in range(5)))

    page = render_contact_sheet(samples, Table("<b>", [""], []))

    assert "<script>" not in page
    assert "<i>" not in page
    assert "\x1b" not in page
    assert "3 more are not shown" in page
    assert "b" * 600 + " …" in page
    assert "b" * 601 not in page
