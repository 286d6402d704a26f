"""Read JSON objects from untrusted files, with a size limit and errors that name the file."""

import json
from pathlib import Path
from typing import Any

from mcpmq.errors import CheckpointError

MAX_JSON_NBYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most `MAX_JSON_NBYTES`.

    Raises:
        CheckpointError: the file is missing or too large, or its content is not a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"no `{path.name}` in `{path.parent}`", "point at a Hugging Face checkpoint folder")
    if path.stat().st_size > MAX_JSON_NBYTES:
        raise CheckpointError(f"`{path}` has {path.stat().st_size:,} bytes, more than {MAX_JSON_NBYTES:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` is not a JSON object")
    return value
