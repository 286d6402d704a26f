"""One quantized artifact to one format; no code of it changes."""

from pathlib import Path
from typing import Any

from mcpmq.artifact import MANIFEST, Artifact, Manifest, appearing_whole, refuse_full_disk, write_manifest
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.formats import FormatName, check_steps, format_named
from mcpmq.formats.format import Format
from mcpmq.quantized_model import Quantized
from mcpmq.system.progress import Progress, silent

NPU_TOWERS = ("siglip-resampler", "timm-resampler")
ROUNDED_FOR_NPUS = (
    "vision graph for NPUs: one size of slices, 16-bit activations over the images of `{}` (sha256 {}), weights rounded"
    " once more to 8 bits by ONNX Runtime"
)


def export(
    quantized: Quantized,
    name: FormatName,
    out: Path,
    progress: Progress = silent,
    npu: CalibrationSet | None = None,
) -> Artifact:
    """Lay a quantized model out in a format. What was exported to `out` before from the same codes is returned.

    With `npu` the vision graph of `onnx` is one that NPUs take, its activations rounded over images of this set.

    Raises:
        FormatError: the format cannot hold a weight on its scheme, or has nothing for NPUs.
        CalibrationError: the set for an NPU has no image.
        OutputError: `out` exists with other content, or the disk is full.
        ArtifactError: what was exported before has changed since.
    """
    layout, options = format_named(name), _options(quantized, name, npu)
    check_steps(family_named(quantized.artifact.manifest.family), quantized.steps, name)
    manifest = _manifest(quantized, layout, name, npu)
    if (out / MANIFEST).is_file():
        earlier = Artifact.open(out)
        if earlier.manifest.model_copy(update={"files": ()}) == manifest:
            earlier.verify()
            return earlier
    refuse_full_disk(out, sum(step.nbytes for step in quantized.steps))
    with appearing_whole(out) as folder:
        write_manifest(folder, manifest, layout.write(quantized, folder, progress, **options))
    return Artifact.open(out)


def _options(quantized: Quantized, name: FormatName, npu: CalibrationSet | None) -> dict[str, Any]:
    if npu and name != "onnx":
        raise FormatError(f"`{name}` has nothing for NPUs", "use `--format onnx` with `--npu`")
    seeing = quantized.architecture.vision
    if npu and (seeing is None or seeing.kind not in NPU_TOWERS):
        raise FormatError(
            f"`{quantized.artifact.manifest.family}` has no vision graph for NPUs, which take slices of one size",
            "export it without `--npu`",
        )
    return {"npu": npu} if npu else {}


def _manifest(quantized: Quantized, layout: Format, name: FormatName, npu: CalibrationSet | None) -> Manifest:
    """The quantized artifact's, and which shapes the format has in its files."""
    manifest = quantized.artifact.manifest
    shapes = layout.stored_shapes(quantized) if hasattr(layout, "stored_shapes") else {}
    weights = tuple(one.model_copy(update={"stored_shape": shapes.get(one.name)}) for one in manifest.weights)
    notes = (ROUNDED_FOR_NPUS.format(npu.path.resolve().name, npu.sha256),) if npu else ()
    told = {"kind": name, "files": (), "weights": weights, "notes": (*manifest.notes, *notes)}
    return manifest.model_copy(update=told)
