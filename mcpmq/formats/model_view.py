"""A quantized model without its weights: the metadata that formats write, from headers and text files alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from mcpmq.artifact import AdapterRecord, Artifact, CalibrationRecord, FileRecord, Manifest, SourceRecord
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.formats.image_tokens import image_limits
from mcpmq.plan import Plan, TensorPlan
from mcpmq.scheme import Scheme
from mcpmq.system.environment import ARTIFACT_PACKAGES, MODEL_PACKAGES, installed_versions

PLACEHOLDER_SHA256 = "0" * 64  # sizes depend on the length of a hash only


class WeightView(Protocol):
    """The part that a manifest record and a tensor plan share: source dtype and activation scheme."""

    @property
    def dtype(self) -> str: ...
    @property
    def activation(self) -> str | None: ...


class ModelView(Protocol):
    """Metadata of a quantized model, or of the model that a plan will produce."""

    @property
    def path(self) -> Path: ...  # folder with the configuration, tokenizer and processor files
    @property
    def artifact(self) -> Artifact: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def architecture(self) -> Architecture: ...
    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...  # by common name, in the order of the forward pass
    @property
    def records(self) -> Mapping[str, WeightView]: ...
    @property
    def tensors(self) -> tuple[TensorPlan, ...]: ...
    def scheme(self, name: str) -> Scheme | None: ...


@dataclass(frozen=True)
class PlannedModel:
    """The view of the model that a plan will produce; hashes that are not known yet are zeros."""

    plan: Plan

    @property
    def path(self) -> Path:
        return self.plan.checkpoint.path

    @property
    def config(self) -> Mapping[str, Any]:
        return self.plan.checkpoint.config

    @property
    def architecture(self) -> Architecture:
        return self.plan.checkpoint.architecture

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return self.plan.tensors

    @cached_property
    def records(self) -> Mapping[str, TensorPlan]:
        """Tensor plans by common name."""
        return {tensor.name: tensor for tensor in self.plan.tensors}

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensor specs by common name, in the order of the forward pass."""
        return {tensor.name: tensor.spec for tensor in self.plan.tensors}

    def scheme(self, name: str) -> Scheme | None:
        return self.records[name].scheme

    @cached_property
    def artifact(self) -> Artifact:
        """The manifest that quantization will write, with the text files that it will copy."""
        checkpoint, recipe = self.plan.checkpoint, self.plan.recipe
        calibrated = recipe.needs_calibration
        adapters = tuple(AdapterRecord(name=one.name, sha256=PLACEHOLDER_SHA256) for one in checkpoint.adapters)
        nbytes = checkpoint.source.nbytes
        source = SourceRecord(name=checkpoint.name, sha256=PLACEHOLDER_SHA256, nbytes=nbytes, adapters=adapters)
        samples = CalibrationRecord(name="", sha256=PLACEHOLDER_SHA256, samples=0, with_image=0, fingerprints=())
        manifest = Manifest(
            kind="quantized",
            family=checkpoint.family.name,
            source=source,
            recipe=recipe.to_dict(),
            vocabulary=checkpoint.vocabulary,
            layers=checkpoint.layers,
            images=image_limits(checkpoint),
            calibration_set=samples if calibrated else None,
            versions=installed_versions((*ARTIFACT_PACKAGES, *(MODEL_PACKAGES if calibrated else ()))),
            weights=(),
            notes=self.plan.notes,
            files=self._text_records(),
        )
        return Artifact(checkpoint.path, manifest)

    def _text_records(self) -> tuple[FileRecord, ...]:
        sizes = [("model", file.name, file.nbytes) for file in self.plan.checkpoint.text_files]
        sizes += [("code", file.name, file.stat().st_size) for file in self.plan.checkpoint.code_files]
        return tuple(
            FileRecord(path=name, component=component, nbytes=nbytes, sha256=PLACEHOLDER_SHA256)
            for component, name, nbytes in sizes
        )
