"""The source files of Python's standard library as texts that no model here was trained or trimmed on."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer


def source_texts() -> list[str]:
    """Return the texts of all modules of the standard library, with its tests."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(file for file in folder.rglob("*.py") if "site-packages" not in file.parts)
    contents = ((file, file.read_bytes()) for file in files)
    return [content.decode() for _, content in contents if content and _is_utf8(content)]


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of every text without special tokens."""
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def count_unchanged(
    tokenizer: Tokenizer, ids: Sequence[int] | None, texts: Sequence[str], before: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Return the number of texts with the tokens `before`, and that of all tokens; `ids` are the original ids."""
    found = before if ids is None else [[ids[token] for token in tokens] for tokens in encode(tokenizer, texts)]
    same = sum(list(one) == list(other) for one, other in zip(before, found, strict=True))
    return {"unchanged_texts": same, "trimmed_text_tokens": sum(map(len, found))}
