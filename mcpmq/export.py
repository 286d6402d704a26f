"""Export a quantized model to one format; the codes do not change."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mcpmq.artifact import Artifact, Manifest, has_manifest, write_manifest
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, FormatError
from mcpmq.families import family_named
from mcpmq.families.encoding import check_samples
from mcpmq.formats import FormatName, check_tensors, format_named
from mcpmq.formats.kv_cache import context_nbytes
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.output import atomic_dir, check_disk_space, check_folder, lock_output, remove_stale_lock
from mcpmq.system.progress import Progress, silent

NPU_VISION_KINDS = ("siglip-resampler", "timm-resampler")
LLAMA_CPP_SLICES = 9  # of MiniCPM-V, a constant
NPU_NOTE = (
    "vision graph for NPUs: fixed slice size, 16-bit activations calibrated on the images of `{}` (sha256 {}), weights"
    " requantized to 8 bits by ONNX Runtime"
)


def export(
    quantized: QuantizedModel,
    name: FormatName,
    out: str | Path,
    progress: Progress = silent,
    npu: SampleSet | None = None,
) -> Artifact:
    """Write a quantized model to `out` in a format; an earlier export of the same model is verified and returned.

    With `npu` the vision graph of `onnx` is a static QDQ graph for NPUs, with activation ranges of this set's images.

    Raises:
        FormatError: the format does not support the scheme of a weight, or has no vision graph for NPUs.
        DatasetError: the set for the NPU has no image, or a sample that cannot be encoded.
        OutputError: `out` exists with other content, or the disk is full.
        ArtifactError: a file of the quantized model, or of an earlier export, has changed.
    """
    target, options, out = format_named(name), _options(quantized, name, npu), Path(out)
    check_tensors(family_named(quantized.artifact.manifest.family), quantized.tensors, name)
    manifest = exported_manifest(quantized, name, npu)
    manifest = manifest.model_copy(update={"quantized_sha256": quantized.artifact.sha256})
    check_folder(out, {quantized.path: "quantized model"} | ({npu.path: "set for the NPU"} if npu else {}))
    with ExitStack() as stack:
        if not has_manifest(out):
            stack.enter_context(lock_output(out))
            check_disk_space(out, sum(tensor.nbytes for tensor in quantized.tensors))
        if has_manifest(out) and (earlier := _earlier_export(out, manifest)):
            remove_stale_lock(out)
            return earlier
        if npu:
            check_samples(family_named(manifest.family).open_processor(quantized.path), npu.samples, progress)
        quantized.artifact.verify()
        with atomic_dir(out) as folder:
            write_manifest(folder, manifest, target.write(quantized, folder, progress, **options))
    return Artifact.open(out)


def _earlier_export(out: Path, manifest: Manifest) -> Artifact | None:
    """Return the verified artifact in a folder if it was made from the same quantized model, or without one."""
    artifact = Artifact.open(out)
    earlier = artifact.manifest.model_copy(update={"files": ()})
    if manifest not in (earlier, earlier.model_copy(update={"quantized_sha256": manifest.quantized_sha256})):
        return None
    artifact.verify()
    return artifact


def _options(quantized: QuantizedModel, name: FormatName, npu: SampleSet | None) -> dict[str, Any]:
    if npu and name != "onnx":
        raise FormatError(f"`{name}` has no vision graph for NPUs", "use `--format onnx` with `--npu`")
    vision = quantized.architecture.vision
    if npu and (vision is None or vision.kind not in NPU_VISION_KINDS):
        raise FormatError(
            f"`{quantized.artifact.manifest.family}` has no vision graph for NPUs, which need a fixed slice size",
            "export it without `--npu`",
        )
    if npu and not any(sample.has_vision for sample in npu):
        raise DatasetError(f"no sample of `{npu.path}` has an image", "pass a set with images to `--npu`")
    return {"npu": npu} if npu else {}


def exported_manifest(quantized: QuantizedModel, name: FormatName, npu: SampleSet | None = None) -> Manifest:
    """Return the manifest of the quantized model with the format's kind and padded shapes, and without files."""
    manifest = quantized.artifact.manifest
    shapes = format_named(name).padded_shapes(quantized)
    weights = tuple(one.model_copy(update={"padded_shape": shapes.get(one.name)}) for one in manifest.weights)
    notes = (NPU_NOTE.format(npu.name, npu.sha256),) if npu else (*_slice_notes(quantized, name),)
    changes: dict[str, Any] = {"kind": name, "files": (), "weights": weights, "notes": (*manifest.notes, *notes)}
    if name == "gguf":
        changes["kv_cache_nbytes"] = context_nbytes(quantized.architecture.language)
    return manifest.model_copy(update=changes)


def _slice_notes(quantized: QuantizedModel, name: FormatName) -> Iterator[str]:
    """Yield a note on a limit of slices that llama.cpp does not have."""
    manifest, vision = quantized.artifact.manifest, quantized.architecture.vision
    limits = manifest.images.limits if manifest.images else None
    if name != "gguf" or not vision or not limits or not family_named(manifest.family).minicpmv_version:
        return
    most = limits.max_slice_nums or LLAMA_CPP_SLICES
    if most < LLAMA_CPP_SLICES:
        pixels = max(most - 1, 1) * vision.slice_resolution**2
        yield (
            f"llama.cpp cuts an image into up to {LLAMA_CPP_SLICES} slices, not {most}; an image that"
            f" is reduced to {pixels:,} pixels before has at most {most}; `mcpmq run --exact` applies the limit"
        )
