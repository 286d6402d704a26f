"""Changes to the files of tiny checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_families import TINY_FAMILIES


def build_family(name: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a family."""
    return next(family for family in TINY_FAMILIES if family.name == name and not family.variant).build(folder)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of all safetensors files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rewrite_weights(folder: Path, tensors: Mapping[str, Tensor], file: str = "model.safetensors") -> None:
    """Replace all weight files by one."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    save_weights(folder / file, tensors)


def save_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file as transformers does."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def edit_json(file: Path, *removed: str, **changes: Any) -> dict[str, Any]:
    """Change keys of a JSON file; return the previous content."""
    content: dict[str, Any] = json.loads(file.read_text())
    kept = {key: value for key, value in content.items() if key not in removed}
    file.write_text(json.dumps(kept | changes))
    return content
