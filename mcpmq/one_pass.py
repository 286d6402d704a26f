"""Convert a plan to one format in one pass: every weight is read, quantized and written, without a quantized model."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from mcpmq.artifact import RESULT_FIELDS, Artifact, Manifest, file_records, has_manifest, write_manifest
from mcpmq.errors import FormatError, ScaleError
from mcpmq.export import export, exported_manifest
from mcpmq.families.blocks import block_name
from mcpmq.formats import FormatName, check_plan, format_named
from mcpmq.plan import Plan, TensorPlan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import check_search_library, copy_checkpoint_files, planned_manifest, quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.rounding.block import deviation_records, find_block_folds
from mcpmq.rounding.weight import WeightStream, quantize_weight
from mcpmq.system.output import atomic_dir, beside, check_disk_space, check_folder, lock_output, remove_stale_lock
from mcpmq.system.progress import Progress, silent
from mcpmq.system.temporary_folder import temporary_folder


class _FoldsRequired(Exception):
    """Powers of two must be folded into neighbors of a weight, some of which are written already."""


def convert_in_one_pass(plan: Plan, name: FormatName, out: str | Path, progress: Progress = silent) -> Artifact:
    """Write a plan without calibration to `out` in a format; an earlier result of it is verified and returned.

    A few chunks of rows are in memory. If powers of two have to be folded into neighbors of a weight, the weights are
    quantized in a first pass, into a folder beside `out` that is removed in the end.

    Raises:
        FormatError: the recipe needs calibration, or the format does not support it.
        OutputError: `out` exists with other content, or the disk is full.
        CheckpointError: a file of the tokenizer or preprocessor is missing, or a weight is not finite.
        ScaleError: the scales of a scheme do not represent a weight.
        MissingExtra: the recipe uses ggml's own search of scales, and xllamacpp is not installed.
    """
    out = Path(out)
    if plan.recipe.needs_calibration:
        raise FormatError(f"the recipe `{plan.recipe.name}` needs calibration", "quantize first, then export")
    check_plan(plan, name)
    check_folder(out, plan.checkpoint.folders)
    check_search_library(plan)
    plan.checkpoint.family.open_processor(plan.checkpoint.path)
    try:
        artifact = _convert(plan, name, out, progress)
    except _FoldsRequired:
        artifact = export(quantize(plan, beside(out, "quantized"), progress=progress), name, out, progress)
    shutil.rmtree(beside(out, "quantized"), ignore_errors=True)
    return artifact


def _convert(plan: Plan, name: FormatName, out: Path, progress: Progress) -> Artifact:
    with ExitStack() as stack:
        if not has_manifest(out):
            stack.enter_context(lock_output(out))
            check_disk_space(out, plan.nbytes)
        model = _StreamedModel.from_plan(plan, stack.enter_context(temporary_folder()))
        manifest = exported_manifest(model, name)
        if has_manifest(out) and (earlier := _earlier_result(out, manifest)):
            remove_stale_lock(out)
            return earlier
        with atomic_dir(out) as folder:
            files = format_named(name).write(model, folder, progress)
            write_manifest(folder, model.add_deviations(manifest), files)
    return Artifact.open(out)


def _earlier_result(out: Path, manifest: Manifest) -> Artifact | None:
    """Return the verified artifact in a folder if it was made from the same plan, also in two passes."""
    artifact = Artifact.open(out)
    weights = tuple(one.model_copy(update=dict.fromkeys(RESULT_FIELDS)) for one in artifact.manifest.weights)
    if artifact.manifest.model_copy(update={"files": (), "weights": weights, "quantized_sha256": None}) != manifest:
        return None
    artifact.verify()
    return artifact


@dataclass(frozen=True)
class _StreamedModel(QuantizedModel):
    """A quantized model that is on no disk: a weight is read and quantized when it is loaded."""

    plan: Plan
    deviations: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by common name
    _folds: dict[str, bool] = field(default_factory=dict)  # whether powers of two are required, by block
    _last: dict[str, QTensor | Tensor] = field(default_factory=dict)  # parts of a weight are loaded in sequence

    @classmethod
    def from_plan(cls, plan: Plan, folder: Path) -> "_StreamedModel":
        """Return the model of a plan, with the text files of the checkpoint in an empty folder."""
        checkpoint = plan.checkpoint
        components = copy_checkpoint_files(checkpoint, folder)
        manifest = planned_manifest(plan).model_copy(update={"files": file_records(folder, components)})
        specs = {tensor.name: tensor.spec for tensor in plan.tensors}
        return cls(Artifact(folder, manifest), checkpoint.config, checkpoint.architecture, specs, plan)

    def add_deviations(self, manifest: Manifest) -> Manifest:
        """Return a manifest with the deviations of all weights that were loaded."""
        fields = deviation_records(self.deviations, ())
        weights = tuple(one.model_copy(update=fields.get(one.name, {})) for one in manifest.weights)
        return manifest.model_copy(update={"weights": weights})

    def load(self, name: str) -> QTensor | Tensor:
        """Quantize a weight, or return a kept or converted one as a tensor [out, in]."""
        if name not in self._last:
            self._last.clear()
            tensor = self._planned[name]
            with self._errors(tensor):
                rounded = quantize_weight(self.plan, tensor)
            self._record(tensor, rounded.deviations, has_inexact_scales=rounded.has_inexact_scales)
            self._last[name] = rounded.stored
        return self._last[name]

    def row_chunks(self, name: str) -> Iterator[QTensor]:
        """Yield a quantized weight in chunks of rows, each of them quantized when it is requested."""
        tensor = self._planned[name]
        stream = WeightStream.open(self.plan, tensor)
        with self._errors(tensor):
            yield from stream.chunks()
        self._record(tensor, stream.deviations, has_inexact_scales=stream.has_inexact_scales)

    @cached_property
    def _planned(self) -> dict[str, TensorPlan]:
        return {tensor.name: tensor for tensor in self.plan.tensors}

    def _record(self, tensor: TensorPlan, deviations: Sequence[str], *, has_inexact_scales: bool) -> None:
        if has_inexact_scales:
            self._check_folds(tensor)
        self.deviations[tensor.name] = tuple(deviations)

    @contextmanager
    def _errors(self, tensor: TensorPlan) -> Iterator[None]:
        try:
            yield
        except ScaleError:
            self._check_folds(tensor)
            raise

    def _check_folds(self, tensor: TensorPlan) -> None:
        """Check that scales without powers of two are the best for the block of a weight."""
        block = block_name(tensor.name)
        if block not in self._folds:
            self._folds[block] = bool(find_block_folds(self.plan, block))
        if self._folds[block]:
            raise _FoldsRequired
