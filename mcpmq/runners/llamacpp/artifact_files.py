"""The files of a GGUF artifact that llama.cpp loads."""

from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.formats.gguf import glma


@dataclass(frozen=True, slots=True)
class ArtifactFiles:
    """The files of a GGUF artifact; the first one of each split model."""

    language: Path
    mmproj: Path | None  # None for a text-only model
    uses_mrope: bool
    image_markers: tuple[int, int]  # tokens of an image before its first and after its last slice
    audio_markers: tuple[int, int] = (0, 0)  # embeddings that llama.cpp adds before and after those of a segment


def artifact_files(path: Path) -> ArtifactFiles:
    """Return the files of a GGUF artifact.

    Raises:
        ArtifactError: the folder is not a GGUF artifact.
    """
    artifact = Artifact.open(path)
    family = family_named(artifact.manifest.family)
    language, mmproj = (artifact.component_files(component) for component in ("language", "vision+projector"))
    if artifact.manifest.kind != "gguf" or not language or len(mmproj) != int(family.has_vision):
        expected = "a language model file and an mmproj file" if family.has_vision else "a language model file"
        raise ArtifactError(f"`{path}` is not a GGUF artifact with {expected}", "export one with `--format gguf`")
    # llama.cpp finds the other files of a split model by the name of the first.
    image_markers = family.prompt_format.image_markers
    audio_markers = (1, 1) if artifact.manifest.recipe.get("gguf_audio") == glma.PROJECTOR else (0, 0)
    vision = mmproj[0] if family.has_vision else None
    return ArtifactFiles(language[0], vision, family.uses_mrope, image_markers, audio_markers)
