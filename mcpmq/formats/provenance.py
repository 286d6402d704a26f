"""Check that every file of an artifact records the same source checkpoint and recipe as the manifest."""

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.formats import format_of

SAME_RELEASE_HINT = "use files of one release only"


def check_provenance(artifact: Artifact) -> int:
    """Compare the provenance recorded in the files with the manifest; return how many files were compared.

    Files of a format that records no provenance are not compared.

    Raises:
        ArtifactError: a file records another source or recipe, records none, or cannot be read.
    """
    manifest, target = artifact.manifest, format_of(artifact.manifest.kind)
    if target is None or target.provenance is None:
        return 0
    files = list(target.provenance(artifact))
    for file in files:
        if file.source_sha256 != manifest.source.sha256:
            raise ArtifactError(
                f"`{file.file}` records source SHA-256 {file.source_sha256[:12] or 'none'}, the manifest of"
                f" `{artifact.path}` records {manifest.source.sha256[:12]}",
                SAME_RELEASE_HINT,
            )
        if file.recipe_name != manifest.recipe.get("name", ""):
            raise ArtifactError(
                f"`{file.file}` records recipe `{file.recipe_name}`, the manifest of `{artifact.path}` records"
                f" `{manifest.recipe.get('name', '')}`",
                SAME_RELEASE_HINT,
            )
    return len(files)
