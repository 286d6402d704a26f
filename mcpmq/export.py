"""One quantized artifact to one format; no code of it changes."""

from pathlib import Path

from mcpmq.artifact import MANIFEST, Artifact, Manifest, appearing_whole, refuse_full_disk, write_manifest
from mcpmq.formats import FormatName, check_steps, format_named
from mcpmq.formats.format import Format
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
    check_steps(quantized.steps, name)
    manifest = _manifest(quantized, layout, name)
    if (out / MANIFEST).is_file():
        earlier = Artifact.open(out)
        if earlier.manifest.model_copy(update={"files": ()}) == manifest:
            earlier.verify()
            return earlier
    refuse_full_disk(out, sum(step.nbytes for step in quantized.steps))
    with appearing_whole(out) as folder:
        write_manifest(folder, manifest, layout.write(quantized, folder, progress))
    return Artifact.open(out)


def _manifest(quantized: Quantized, layout: Format, name: FormatName) -> Manifest:
    """The quantized artifact's, and which shapes the format has in its files."""
    manifest = quantized.artifact.manifest
    shapes = layout.stored_shapes(quantized) if hasattr(layout, "stored_shapes") else {}
    weights = tuple(one.model_copy(update={"stored_shape": shapes.get(one.name)}) for one in manifest.weights)
    return manifest.model_copy(update={"kind": name, "files": (), "weights": weights})
