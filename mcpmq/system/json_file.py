"""JSON objects from files that nobody vouches for: of bounded size, and errors that name the file."""

import json
from pathlib import Path
from typing import Any

from mcpmq.errors import CheckpointError

LARGEST_JSON_NBYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        CheckpointError: the file is missing, too large, or holds no JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"no `{path.name}` in `{path.parent}`", "point at a Hugging Face checkpoint folder")
    if path.stat().st_size > LARGEST_JSON_NBYTES:
        raise CheckpointError(f"`{path}` has {path.stat().st_size:,} bytes, more than {LARGEST_JSON_NBYTES:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` holds no JSON object")
    return value
