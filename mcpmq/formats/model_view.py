"""A quantized model without its weights: all that a format writes before and around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from mcpmq.artifact import Artifact, CalibrationRecord, FileRecord, Manifest, SourceRecord
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.plan import Plan, Step
from mcpmq.scheme import Scheme
from mcpmq.system.environment import PACKAGES, PACKAGES_OF_THE_MODEL, installed_versions

UNKNOWN_SHA256 = "0" * 64  # as long as a hash, which is all that sizes depend on


class Declares(Protocol):
    """A record or a step: both know the dtype of the source, and what inputs are rounded to."""

    @property
    def dtype(self) -> str: ...
    @property
    def activation(self) -> str | None: ...


class Declared(Protocol):
    """What headers and texts tell of a model: of one that is quantized already, or of a plan."""

    @property
    def path(self) -> Path: ...  # the folder of configuration, tokenizer and processor files
    @property
    def artifact(self) -> Artifact: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def architecture(self) -> Architecture: ...
    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...  # by common name, in the order of the forward pass
    @property
    def records(self) -> Mapping[str, Declares]: ...
    @property
    def steps(self) -> tuple[Step, ...]: ...
    def scheme(self, name: str) -> Scheme | None: ...


@dataclass(frozen=True)
class Planned:
    """A plan, declared as what it will become; hashes that only carrying it out can tell are zeros."""

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
    def steps(self) -> tuple[Step, ...]:
        return self.plan.steps

    @cached_property
    def records(self) -> Mapping[str, Step]:
        """Steps by common name."""
        return {step.name: step for step in self.plan.steps}

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors by common name, in the order of the forward pass."""
        return {step.name: step.spec for step in self.plan.steps}

    def scheme(self, name: str) -> Scheme | None:
        return self.records[name].scheme

    @cached_property
    def artifact(self) -> Artifact:
        """The manifest as quantizing will write it, and the texts that it will copy."""
        checkpoint, recipe = self.plan.checkpoint, self.plan.recipe
        texts = tuple(
            FileRecord(path=file.name, component=component, nbytes=file.stat().st_size, sha256=UNKNOWN_SHA256)
            for component, files in (("model", checkpoint.texts), ("code", checkpoint.code))
            for file in files
        )
        seen = CalibrationRecord(name="", sha256=UNKNOWN_SHA256, samples=0, with_image=0, fingerprints=())
        source = SourceRecord(name=checkpoint.path.resolve().name, sha256=UNKNOWN_SHA256, nbytes=checkpoint.nbytes)
        manifest = Manifest(
            kind="quantized",
            family=checkpoint.family.name,
            source=source,
            recipe=recipe.written(),
            calibrated_on=seen if recipe.looks else None,
            versions=installed_versions((*PACKAGES, *(PACKAGES_OF_THE_MODEL if recipe.looks else ()))),
            weights=(),
            files=texts,
        )
        return Artifact(checkpoint.path, manifest)
