"""Escape text of unknown origin, such as names of files and samples, for terminals, Markdown, JSON and XML."""

import re

# C0 without tab and newline, DEL and C1 (terminals execute them), marks and isolates that change the direction of text,
# line separators, surrogates and noncharacters (not allowed in UTF-8 or XML).
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"})
MARKDOWN_SYNTAX = re.compile(r"[\\`\[\]]")  # code, links and images
URLS = re.compile(r"(?i)(?<=[a-z]):(?=//)|(?<=www)\.")  # which readers turn into links


def escape_controls(text: str) -> str:
    r"""Return the text with control characters as escapes, for example `\u001b`; tabs and newlines stay."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_markdown(text: str) -> str:
    """Return the text so that it is displayed unchanged, in one line without HTML, links and images.

    Pairs of single backticks make code, in which Markdown has no other syntax.
    """
    line = " ".join(re.split("[\n\t]", escape_controls(text)))
    if "``" in line or line.count("`") % 2:
        return _escape_plain(line)
    parts = line.split("`")
    return "`".join(part if number % 2 else _escape_plain(part) for number, part in enumerate(parts))


def _escape_plain(line: str) -> str:
    literal = MARKDOWN_SYNTAX.sub(r"\\\g<0>", line).translate(MARKDOWN)
    return URLS.sub(lambda found: f"&#{ord(found[0])};", literal)


def escape_cell(text: str) -> str:
    """Return the text for a cell of a Markdown table."""
    return escape_markdown(text).replace("|", "\\|")


def code_span(text: str) -> str:
    """Return the text as Markdown code, in more backticks than it contains."""
    line = escape_controls(text).replace("\n", " ")
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
