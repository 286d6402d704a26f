"""One quantized artifact to one format; no code of it changes."""

from pathlib import Path

from mcpmq.artifact import MANIFEST, Artifact, appearing_whole, refuse_full_disk, write_manifest
from mcpmq.families import family_named
from mcpmq.formats import FormatName, check_steps, format_named
from mcpmq.progress import Progress, silent
from mcpmq.quantized import Quantized


def export(quantized: Quantized, name: FormatName, out: Path, progress: Progress = silent) -> Artifact:
    """Lay a quantized model out in a format. What was exported to `out` before from the same codes is returned.

    Raises:
        FormatError: the format cannot hold a weight on its scheme.
        OutputError: `out` exists with other content, or the disk is full.
        ArtifactError: what was exported before has changed since.
    """
    layout = format_named(name)
    check_steps(family_named(quantized.artifact.manifest.family), quantized.steps, name)
    manifest = quantized.artifact.manifest.model_copy(update={"kind": name, "files": ()})
    if (out / MANIFEST).is_file():
        earlier = Artifact.open(out)
        if earlier.manifest.model_copy(update={"files": ()}) == manifest:
            earlier.verify()
            return earlier
    refuse_full_disk(out, sum(step.nbytes for step in quantized.steps))
    with appearing_whole(out) as folder:
        write_manifest(folder, manifest, layout.write(quantized, folder, progress))
    return Artifact.open(out)
