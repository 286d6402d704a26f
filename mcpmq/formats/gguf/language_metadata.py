"""Hyperparameters in the header of a language model file."""

from pathlib import Path
from typing import Any

from gguf import GGUFReader

from mcpmq.errors import ArtifactError


def read_head_widths(file: Path) -> tuple[int, int]:
    """Return the channels of a key head and of a value head.

    Raises:
        ArtifactError: the file is not a GGUF file of a language model.
    """
    try:
        reader = GGUFReader(file)
        architecture = _value(reader, "general.architecture")
        heads = _value(reader, f"{architecture}.attention.head_count")
        width = _value(reader, f"{architecture}.embedding_length")
        names = (f"{architecture}.attention.{name}_length" for name in ("key", "value"))
        found = [reader.get_field(name) for name in names]
    except (OSError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise ArtifactError(f"`{file}` is not a GGUF file of a language model: {error}", "export it again") from error
    keys, values = (width // heads if field is None else int(field.contents()) for field in found)
    return keys, values


def _value(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise LookupError(f"no `{name}`")
    return field.contents()
