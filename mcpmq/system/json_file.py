"""Read JSON objects and texts from untrusted files, with a size limit and errors that name the file."""

import json
from pathlib import Path
from typing import Any

from mcpmq.errors import CheckpointError, McpmqError
from mcpmq.system.text_file import decode_text

MAX_JSON_NBYTES = 64 << 20
MAX_DIGITS = 19  # of a signed integer of 64 bits
FOLDER_HINT = "point at a Hugging Face checkpoint folder"
AGAIN_HINT = "download it again"


def read_json(path: Path, hint: str = FOLDER_HINT) -> dict[str, Any]:
    """Return the JSON object in a file of at most `MAX_JSON_NBYTES`; a byte order mark is skipped.

    Raises:
        CheckpointError: the file is missing, with the hint, or too large, or its content is not a JSON object.
    """
    try:
        value = json.loads(read_text(path, hint))
        json.dumps(value, ensure_ascii=False).encode()  # fails for surrogates, which no UTF-8 file can have
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is not valid JSON: {error}", AGAIN_HINT) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` is not a JSON object", AGAIN_HINT)
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file does not exist.

    Raises:
        CheckpointError: the file is too large, or its content is not a JSON object.
    """
    return read_json(path) if path.exists() or path.is_symlink() else {}


def read_text(path: Path, hint: str = FOLDER_HINT) -> str:
    """Return the text of a file of at most `MAX_JSON_NBYTES`, without a byte order mark.

    Raises:
        CheckpointError: the file is missing, with the hint, or too large, or its content is not Unicode text.
    """
    if not path.is_file():
        raise CheckpointError(f"no `{path.name}` in `{path.parent}`", hint)
    if (nbytes := path.stat().st_size) > MAX_JSON_NBYTES:
        raise CheckpointError(f"`{path}` has {nbytes:,} bytes, more than {MAX_JSON_NBYTES:,}", AGAIN_HINT)
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise CheckpointError(f"`{path}` is not Unicode text: {error}", AGAIN_HINT) from error


def check_integers(file: Path, content: bytes, error_type: type[McpmqError], hint: str) -> None:
    """Check that no integer of a JSON text has more than 64 bits; pydantic accepts it, float arithmetic fails.

    Raises:
        McpmqError: of `error_type`, with the hint: an integer is longer.
    """
    longest = 0

    def measure(digits: str) -> int:
        nonlocal longest
        longest = max(longest, len(digits.lstrip("-")))
        return 0

    try:
        json.loads(content, parse_int=measure)
    except (ValueError, RecursionError):  # the caller reports invalid texts
        return
    if longest > MAX_DIGITS:
        raise error_type(f"`{file}` has an integer of {longest:,} digits, more than 64 bits", hint)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON text; the standard parser would drop all but the last value of a key.

    Raises:
        ValueError: a key is given twice.
    """
    found = dict(pairs)
    if len(pairs) != len(found):
        raise ValueError("a key is given twice")
    return found
