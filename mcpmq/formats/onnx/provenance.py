"""Source checkpoint and recipe that the metadata of ONNX graphs record."""

import json
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from mcpmq.artifact import REBUILD, Artifact
from mcpmq.errors import ArtifactError
from mcpmq.formats.format import FileProvenance


def read_provenance(artifact: Artifact) -> Iterator[FileProvenance]:
    """Yield the provenance that each graph of an artifact records.

    Raises:
        ArtifactError: a graph cannot be parsed.
    """
    for record in artifact.manifest.files:
        if record.path.endswith(".onnx"):
            file = artifact.path / record.path
            try:
                model = onnx.load(file, load_external_data=False)
                metadata = {entry.key: entry.value for entry in model.metadata_props}
                recipe = json.loads(metadata.get("recipe", "{}")).get("name", "")
            except (DecodeError, OSError, ValueError, AttributeError, RecursionError) as error:
                raise ArtifactError(f"`{file}` is not a valid ONNX graph: {error}", REBUILD) from error
            yield FileProvenance(file.name, metadata.get("source_sha256", ""), recipe)
