"""Where a file says that it comes from, so that files of two models are not taken for one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError

TOGETHER = "take all files of one model from one release"


@dataclass(frozen=True, slots=True)
class Origin:
    """What is written inside of a file."""

    file: str
    source_sha256: str
    recipe: str


def check_origins(artifact: Artifact) -> int:
    """See that every file was made from the source and by the recipe of the manifest; how many were looked at.

    Raises:
        ArtifactError: one was not, or does not say.
    """
    manifest, count = artifact.manifest, 0
    for origin in ORIGINS[manifest.kind](artifact):
        count += 1
        if origin.source_sha256 != manifest.source.sha256:
            raise ArtifactError(
                f"`{origin.file}` was made from a model of SHA-256 {origin.source_sha256[:12] or 'unknown'},"
                f" `{artifact.path}` says {manifest.source.sha256[:12]}",
                TOGETHER,
            )
        if origin.recipe != manifest.recipe["name"]:
            raise ArtifactError(
                f"`{origin.file}` was made by recipe `{origin.recipe}`, `{artifact.path}` says"
                f" `{manifest.recipe['name']}`",
                TOGETHER,
            )
    return count


def _of_gguf(artifact: Artifact) -> Iterator[Origin]:
    from gguf import GGUFReader

    for component in ("language", "vision+projector"):
        if not (files := artifact.files_of(component)):
            continue  # of a model that reads text only
        file = files[0]  # of parts, the first holds the metadata
        try:
            reader = GGUFReader(file)
        except (ValueError, IndexError) as error:
            raise ArtifactError(f"`{file}` is no GGUF file: {error}", TOGETHER) from error
        source, recipe = (reader.get_field(f"mcpmq.{key}") for key in ("source.sha256", "recipe"))
        yield Origin(file.name, str(source.contents()) if source else "", str(recipe.contents()) if recipe else "")


def _of_onnx(artifact: Artifact) -> Iterator[Origin]:
    import json

    import onnx

    for record in artifact.manifest.files:
        if record.path.endswith(".onnx"):
            model = onnx.load(artifact.path / record.path, load_external_data=False)
            said = {one.key: one.value for one in model.metadata_props}
            recipe = json.loads(said.get("recipe", "{}")).get("name", "")
            yield Origin(Path(record.path).name, said.get("source_sha256", ""), recipe)


ORIGINS: dict[str, Callable[[Artifact], Iterator[Origin]]] = {"gguf": _of_gguf, "onnx": _of_onnx}
