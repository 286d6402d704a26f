"""Text of unknown origin in terminals, Markdown, JSON and XML."""

import json

import pytest

from mcpmq.system.escaping import code_span, escape_cell, escape_controls, escape_markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\x1b[31mb", "a\\u001b[31mb"),
        ("\r\x00\x08", "\\u000d\\u0000\\u0008"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800\uffff\u2028", "\\ud800\\uffff\\u2028"),
        ("tab\tline\nünï 図 🙂", "tab\tline\nünï 図 🙂"),
    ],
)
def test_control_characters_are_displayed_as_escapes(text: str, escaped: str) -> None:
    """Terminals execute none of them; tabs, newlines and all letters stay."""
    assert escape_controls(text) == escaped


def test_escapes_are_json_escapes() -> None:
    """A JSON text is read back with the same characters."""
    assert json.loads(escape_controls(json.dumps("\x1b\x9b\u202e\\", ensure_ascii=False))) == "\x1b\x9b\u202e\\"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("![a](b)", "!\\[a\\](b)"),
        ("a `<b>[c](d)` \\[", "a `<b>[c](d)` \\\\\\["),
        ("a `<b>", "a \\`&lt;b&gt;"),
        ("``a` <b>`", "\\`\\`a\\` &lt;b&gt;\\`"),
        ("two\nlines", "two lines"),
        (
            "https://a.example/b a@b.example",
            "https&#58;//a.example/b a&#64;b.example",
        ),
        ("&lt;", "&amp;lt;"),
        ("WWW.example.org", "WWW&#46;example.org"),
        ("phone-int4: 12.5 % ±0.1, load time *", "phone-int4: 12.5 % ±0.1, load time *"),
    ],
)
def test_markdown_displays_the_text_unchanged(text: str, escaped: str) -> None:
    """No HTML, link or image is made of the text; code, plain words and numbers stay."""
    assert escape_markdown(text) == escaped


def test_a_cell_has_no_further_columns() -> None:
    """A pipe is escaped."""
    assert escape_cell("a|b\x1b") == r"a\|b\\u001b"


@pytest.mark.parametrize(
    ("text", "span"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a``", "``` `a`` ```"), ("a\n|<b>", "`a |<b>`")]
)
def test_code_has_more_backticks_than_its_text(text: str, span: str) -> None:
    """No text ends the code."""
    assert code_span(text) == span
