"""Text files of a checkpoint as artifacts have them: with the encoding and configuration that readers require."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.system.json_file import read_json
from mcpmq.system.text_file import ENCODINGS, decode_text


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file, and its content where artifacts have another one."""

    path: Path
    content: bytes | None = None

    @property
    def name(self) -> str:
        """Name in the folder."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Size in an artifact."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    @property
    def sha256(self) -> str:
        """SHA-256 in an artifact."""
        return hashlib.sha256(self.path.read_bytes() if self.content is None else self.content).hexdigest()

    def copy(self, folder: Path) -> None:
        """Write the file to a folder."""
        if self.content is None:
            shutil.copyfile(self.path, folder / self.name)
        else:
            (folder / self.name).write_bytes(self.content)


def copy_files(files: Iterable[TextFile], folder: Path, replaced: Mapping[str, str]) -> None:
    """Write files to a folder, some with another text, which is given by name."""
    for file in files:
        if file.name in replaced:
            (folder / file.name).write_text(replaced[file.name], encoding="utf-8")
        else:
            file.copy(folder)


def to_json(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def text_file(path: Path, config: Mapping[str, Any] | None = None) -> TextFile:
    """Return a text file; JSON in UTF-8 without a byte order mark, as the readers of artifacts require it.

    `config` is the configuration for the stored weights; it replaces the content if the file has another one.
    """
    if config is not None and config != read_json(path):
        return TextFile(path, to_json(config).encode())
    with path.open("rb") as stream:
        begins_with_mark = stream.read(4).startswith(tuple(ENCODINGS)) and path.suffix == ".json"
    return TextFile(path, decode_text(path.read_bytes()).encode()) if begins_with_mark else TextFile(path)
