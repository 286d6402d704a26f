"""Lint for wording: names, docstrings, comments, messages and documents use the terms of docs/glossary.md."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted(
    path
    for folder in ("mcpmq", "benchmarks", "calibration", "docs", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
RECIPES = sorted((ROOT / "mcpmq").rglob("*.toml")) + sorted((ROOT / "benchmarks").rglob("*.toml"))
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")}
)
PAGES = sorted((ROOT / "mcpmq").rglob("*.html")) + sorted((ROOT / "mcpmq").rglob("*.j2"))

# Pattern in prose, and the replacement. "see" and "give" are ordinary words and stay.
DISALLOWED = {
    r"\bwhat\b(?![^.!?]*\?)": "name the noun: `the vision encoder`, not `what sees`",
    r"\b(whatever|whoever|whichever|nobody|somebody|everybody)\b": "name the noun",
    r"\b(is|are|was|were) no (?!longer|larger|smaller|more|less|higher|lower|later)\w": "`is not a`, `has no`",
    r"\b(there is none|(?-i:is none)|of so many|so many)\b": "give the number or the noun",
    r"\b(sees|saw|seeing|sight)\b": "`receives`, `vision`",
    r"\b(says|said|saying|tells|told|telling|speaks|spoken|speaking|hears|heard)\b": "`reports`, `contains`, `audio`",
    r"\b(judges?|judged|judging|judgement)\b": "`select`, `evaluate`",
    r"\b(looks?|looked|looking)\b(?! up)": "`reads`, `inspects`, `calibrates`",
    r"\b(knows|forgets|remembers|remembering|minds|wants|wanted|likes)\b": "code and weights are not persons",
    r"\basked\b": "`requested`",
    r"\bhand(s|ed|ing)? (on|over)\b": "`pass`, `pass through`",
    r"\bas (it|they) (is|are)\b(?! \w)": "`unchanged`",
    r"\b(room|rooms|house|walls|tongue|pictures?|eyes?|blind)\b": "`module`, `image`, `vision`",
    r"\b(reckon\w*|anew|strange|honest\w*|worn|wears?|word for word|whole way)\b": "use the plain term",
    r"\b(likeliest|mnat)\b": "`top-1`, `nats`",
    r"\b(weighs|weighed|weighing)\b": "`weight`, `weighted`, `has a size of`",
    r"\b(licen[c]e\w*|colour\w*|behaviour\w*|centre\w*|honour\w*|grey)\b": "US spelling",
    r"\b(organis|recognis|normalis)\w*": "US spelling",
    r"(?m)^(?-i:Of) (?!course)": "write a sentence, not a fragment",
    r"\bby sight\b|\bin turn\b": "`sequential`",
    r"(?<![\w.])/(home|root|work\w*)/": "a path of one machine; use a relative path",
}
QUESTION_WORDS = ("what ", "how ", "which ", "where ", "whether ", "why ", "who ")
DISALLOWED_IN_NAMES = re.compile(
    r"anew|asked|damage|damages|eyes|honest|house|judge|judged|judging|licence|licences|likeliest|"
    r"looks|looking|picture|pictures|reckon|reckoned|reckoning|refuse|refused|refuses|refusing|room|"
    r"rooms|said|saw|say|says|see|seeing|sees|sight|speaks|spoken|strange|tell|tells|thing|things|"
    r"told|wanted|wants|weighs|weighed|worn|wear"
)
# Files whose string literals are data: prompts and answers of the committed sets, other projects' texts.
DATA = {
    f"calibration/{name}.py"
    for name in (
        "phrases",
        "prose",
        "questions",
        "scenes",
        "vocabulary",
        "reference/tokenizer",
        "speech_phrases",
        "make_speech_sets",
    )
}
EXEMPT = {"tests/test_wording.py", "docs/glossary.md"}

Prose = Iterator[tuple[int, str]]


def _docstrings(tree: ast.Module) -> Prose:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node) or ""


def _comments(text: str) -> Prose:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _messages(tree: ast.Module) -> Prose:
    """String literals with a space in them that are not docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    for node in constants:
        if isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, re.sub(r"`[^`]*`", "``", node.value)


def _defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def _words(name: str) -> set[str]:
    return set(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name.replace("_", " "))) if name else set()


def _wrong_words(prose: Prose) -> Iterator[str]:
    for line, text in prose:
        for pattern, replacement in DISALLOWED.items():
            for found in re.finditer(pattern, text, re.IGNORECASE):
                yield f"{line + text.count(chr(10), 0, found.start())}: `{found[0]}`: {replacement}"


def _findings(path: Path) -> list[str]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    tree = ast.parse(text)
    docstrings = list(_docstrings(tree))
    found = [*_wrong_words(iter(docstrings)), *_wrong_words(_comments(text))]
    found += [
        f"{line}: docstring begins with a question word"
        for line, text in docstrings
        if text.lower().startswith(QUESTION_WORDS)
    ]
    if name not in DATA and not name.startswith("tests/"):
        found += _wrong_words(_messages(tree))
    for line, defined in _defined_names(tree):
        wrong = {word.lower() for word in _words(defined) if DISALLOWED_IN_NAMES.fullmatch(word.lower())}
        found += [f"{line}: name `{defined}`: {', '.join(sorted(wrong))}"] if wrong else []
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_uses_plain_terms(path: Path) -> None:
    """Docstrings, comments, messages and defined names contain no disallowed word."""
    if path.relative_to(ROOT).as_posix() not in EXEMPT:
        found = _findings(path)

        assert not found, "\n".join(found)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipe_comments_use_plain_terms(path: Path) -> None:
    """Comments of recipes and gates contain no disallowed word."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)

    assert list(_wrong_words((number, line.partition("#")[2].strip()) for number, line in lines)) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_use_plain_terms(path: Path) -> None:
    """Text outside of code blocks, inline code and tags contains no disallowed word."""
    if path.relative_to(ROOT).as_posix() not in EXEMPT:
        text = re.sub(
            r"(?ms)^```.*?^```|<!--.*?-->", lambda found: "\n" * found[0].count("\n"), path.read_text(encoding="utf-8")
        )
        text = re.sub(r"`[^`\n]*`|\]\([^)]*\)|<[^<>\n]*>", "", text)

        assert list(_wrong_words(enumerate(text.splitlines(), start=1))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_templates_use_plain_terms(path: Path) -> None:
    """Text outside of tags and template expressions contains no disallowed word."""
    pattern = r"(?s)<style>.*?</style>|<[^>]*>|\{[{%].*?[%}]\}"
    text = re.sub(pattern, lambda found: "\n" * found[0].count("\n"), path.read_text(encoding="utf-8"))

    assert list(_wrong_words(enumerate(text.splitlines(), start=1))) == []
