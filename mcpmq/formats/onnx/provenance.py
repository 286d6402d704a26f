"""Source checkpoint and recipe that the metadata of ONNX graphs record."""

import json
from collections.abc import Iterator
from pathlib import Path

import onnx

from mcpmq.artifact import Artifact
from mcpmq.formats.format import FileProvenance


def read_provenance(artifact: Artifact) -> Iterator[FileProvenance]:
    """Yield the provenance that each graph of an artifact records."""
    for record in artifact.manifest.files:
        if record.path.endswith(".onnx"):
            model = onnx.load(artifact.path / record.path, load_external_data=False)
            metadata = {entry.key: entry.value for entry in model.metadata_props}
            recipe = json.loads(metadata.get("recipe", "{}")).get("name", "")
            yield FileProvenance(Path(record.path).name, metadata.get("source_sha256", ""), recipe)
