"""The folder of a conversion: quantized models, formats, and those of earlier conversions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact, has_manifest
from mcpmq.dataset import SampleSet
from mcpmq.errors import OutputError
from mcpmq.formats import FORMATS, FormatName
from mcpmq.formats.recipes import FormatsByRecipe
from mcpmq.plan import Plan
from mcpmq.system.output import beside

QUANTIZED = "quantized"


@dataclass(frozen=True, slots=True)
class Target:
    """A plan, the folder of its quantized model, and the folders of its formats."""

    plan: Plan
    quantized: Path
    formats: dict[FormatName, Path]

    @property
    def has_quantized(self) -> bool:
        """The quantized model exists, complete or not."""
        return has_manifest(self.quantized) or beside(self.quantized, "partial").exists()


def make_targets(
    out: Path, plans: Sequence[Plan], recipes: FormatsByRecipe, calibration: SampleSet | None
) -> list[Target]:
    """Return the folders of every plan; those that earlier conversions wrote must have the same inputs.

    Raises:
        OutputError: a folder has an artifact of another checkpoint, recipe or calibration set.
    """
    targets = []
    for plan, (_, names) in zip(plans, recipes, strict=True):
        folder = _quantized_folder(out, plan, calibration, is_only=len(plans) == 1)
        targets.append(Target(plan, folder, {name: out / name for name in names}))
        for one in (folder, *targets[-1].formats.values()):
            _check_earlier(one, plan, calibration)
    return targets


def other_formats(out: Path, formats: Sequence[FormatName]) -> list[Path]:
    """Return the artifacts of earlier conversions in other formats."""
    return [out / name for name in FORMATS if name not in formats and has_manifest(out / name)]


def quantized_artifacts(out: Path) -> list[Artifact]:
    """Return the quantized models in the folder of a conversion, and the artifacts that were written without one."""
    folders = [*sorted(out.glob(f"{QUANTIZED}*")), *(out / name for name in FORMATS)]
    artifacts = [Artifact.open(folder) for folder in folders if has_manifest(folder)]
    return [artifact for artifact in artifacts if artifact.manifest.quantized_sha256 is None]


def _quantized_folder(out: Path, plan: Plan, calibration: SampleSet | None, *, is_only: bool) -> Path:
    """Return `quantized` for the recipe that was first in `out`, `quantized-RECIPE` for others and for several."""
    first, named = out / QUANTIZED, out / f"{QUANTIZED}-{plan.recipe.name}"
    if has_manifest(named):
        return named
    if not has_manifest(first):
        return first if is_only else named
    earlier = Artifact.open(first)
    is_other = earlier.manifest.source.sha256 == plan.checkpoint.sha256 and _difference(earlier, plan, calibration)
    return named if is_other else first


def _check_earlier(folder: Path, plan: Plan, calibration: SampleSet | None) -> None:
    """Check that the artifact in a folder, if there is one, has the inputs of a plan."""
    if has_manifest(folder) and (difference := _difference(Artifact.open(folder), plan, calibration)):
        raise OutputError(
            f"`{folder}` was made {difference}",
            "give another folder, or delete this one; other formats can be added to the same folder",
        )


def _difference(earlier: Artifact, plan: Plan, calibration: SampleSet | None) -> str | None:
    """Return the inputs of an artifact that differ from those of a plan, as the end of a sentence."""
    manifest, recipe = earlier.manifest, plan.recipe
    used, given = manifest.calibration_set, calibration if recipe.needs_calibration else None
    if manifest.source.sha256 != plan.checkpoint.sha256:
        return f"from another checkpoint, `{manifest.source.merged_name}`, SHA-256 {manifest.source.sha256[:12]}"
    if manifest.recipe != recipe.to_dict():
        return f"with the recipe `{manifest.recipe.get('name')}`, which differs from `{recipe.name}`"
    if manifest.vocabulary != plan.checkpoint.vocabulary:
        return f"with another vocabulary, {manifest.vocabulary or 'all tokens'}"
    if manifest.layers != plan.checkpoint.layers:
        return f"with other layers, {manifest.layers or 'all of the original'}"
    if (manifest.images and manifest.images.limits) != plan.checkpoint.images:
        return f"with other image limits, {manifest.images or 'those of the original'}"
    if (used and used.sha256) != (given and given.sha256):
        return f"with another calibration set, `{used.name if used else 'none'}`"
    return None
