"""Print artifacts, checkpoints, sample sets and supported families."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.system.escaping import escape_controls
from mcpmq.system.table import Row, Table, format_megabytes
from mcpmq.ui.reports import print_report
from mcpmq.ui.terminal import (
    print_json,
    print_notice,
    print_properties,
    print_table,
    progress_bars,
    properties_table,
)

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.artifact import Artifact, Manifest
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import SampleSet

MAX_DEVIATIONS = 5  # printed


def print_artifact(artifact: "Artifact", *, as_json: bool = False) -> None:
    """Print origin, recipe, calibration set, schemes and sizes of an artifact."""
    print_table(_artifact_table(artifact), artifact.manifest.model_dump(mode="json"), as_json=as_json)


def print_deviations(artifact: "Artifact") -> None:
    """Print deviations from the plan to stderr, unless quiet."""
    deviations = artifact.manifest.deviations()
    for name, text in list(deviations.items())[:MAX_DEVIATIONS]:
        print_notice(f"`{name}`: {text}")
    if len(deviations) > MAX_DEVIATIONS:
        print_notice(f"all deviations: {_deviation_count(artifact.manifest)}")


def _deviation_count(manifest: "Manifest") -> str:
    return f"{len(manifest.deviations())} weights, in the field `deviation` of mcpmq.json"


def print_checkpoint(checkpoint: "Checkpoint", *, as_json: bool = False) -> None:
    """Print family, dtypes and sizes of a checkpoint."""
    print_properties("checkpoint", str(checkpoint.path), checkpoint.to_dict(), as_json=as_json)


def print_sample_set(samples: "SampleSet", *, as_json: bool = False) -> None:
    """Print the number of samples, images and tags of a set, and lengths and sizes."""
    from mcpmq.dataset.statistics import set_statistics

    print_properties("set", str(samples.path), set_statistics(samples), as_json=as_json)


def print_set(
    samples: "SampleSet", checkpoint: "Checkpoint | None", html: Path | None, *, as_json: bool = False
) -> None:
    """Print a sample set, with its numbers of tokens for a checkpoint, and write a page with all images.

    Raises:
        CheckpointError: text files of the checkpoint are missing or invalid.
        OutputError: the page cannot be written.
    """
    from mcpmq.dataset.statistics import set_statistics
    from mcpmq.families.encoding import token_statistics
    from mcpmq.system.durable_file import write_durably
    from mcpmq.system.output import check_file, output_errors
    from mcpmq.ui.contact_sheet import PAGE_BEGINNING, render_contact_sheet

    if html:
        check_file(html, {samples.path: "sample set"}, PAGE_BEGINNING)
    properties = set_statistics(samples)
    if checkpoint:
        processor = checkpoint.family.open_processor(checkpoint.path)
        properties |= token_statistics(processor, samples.samples, progress_bars())
    if html:
        with output_errors(html):
            write_durably(html, render_contact_sheet(samples, properties_table("set", str(samples.path), properties)))
    print_properties("set", str(samples.path), properties, as_json=as_json)


def print_families(*, as_json: bool = False, as_markdown: bool = False) -> None:
    """Print the supported models and the restrictions of every format."""
    from mcpmq.formats.support import support_matrix, support_table

    print_table(support_table(), support_matrix(), as_json=as_json, as_markdown=as_markdown)


def print_recipes(*, as_json: bool = False) -> None:
    """Print the built-in recipes with their formats and measured results."""
    from mcpmq.formats.recipes import reason_notes, recipe_list, recipes_table

    table = recipes_table()
    table = replace(table, notes=[*reason_notes(), *table.notes])
    print_table(table, recipe_list(), as_json=as_json)


def print_recipe(name: str, *, as_json: bool = False) -> None:
    """Print one recipe as the text of its file."""
    from mcpmq.recipe import Recipe, recipe_path

    recipe = Recipe.load(name)
    if as_json:
        print_json(recipe.to_dict())
    else:
        sys.stdout.write(escape_controls(recipe_path(name).read_text(encoding="utf-8")))


def inspect_path(path: Path, *, as_json: bool = False, all_rows: bool = False) -> None:
    """Print the object at a path: a release, a report, an artifact, a sample set or a checkpoint.

    Raises:
        McpmqError: the path is not one of these, or its content is invalid.
    """
    from mcpmq import artifact, dataset
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.release.record import RECORD, Release
    from mcpmq.report import JSON_FILE, Report

    if (path / RECORD).is_file():
        release = Release.open(path)
        print_table(release.to_table(), release.record.model_dump(mode="json"), as_json=as_json)
    elif path.name == JSON_FILE or (path / JSON_FILE).is_file():
        print_report(Report.load(path), as_json=as_json, all_rows=all_rows)
    elif (path / artifact.MANIFEST).is_file():
        print_artifact(artifact.Artifact.open(path), as_json=as_json)
    elif dataset.has_records(path):
        print_sample_set(dataset.SampleSet.open(path, dataset.ReadOptions(skip_invalid=True)), as_json=as_json)
    else:
        print_checkpoint(Checkpoint.open(path), as_json=as_json)


def _artifact_table(artifact: "Artifact") -> Table:
    manifest, sizes = artifact.manifest, artifact.nbytes_by_component()
    source = (
        f"{manifest.source.merged_name}, {format_megabytes(manifest.source.nbytes)}, sha256 {manifest.source.sha256}"
    )
    rows: list[Row] = [
        ("sha256", [artifact.sha256]),
        ("family", [manifest.family]),
        ("original", [source]),
        ("recipe", [str(manifest.recipe.get("name"))]),
        *([("layers", [str(manifest.layers)])] if manifest.layers else []),
        *([("image limits", [str(manifest.images)])] if manifest.images else []),
        *([("vocabulary", [str(manifest.vocabulary)])] if manifest.vocabulary else []),
        ("calibration set", [_calibration_set(artifact)]),
        *((f"calibration tokens, {component}", [tokens]) for component, tokens in _token_counts(artifact).items()),
        ("weights", [", ".join(f"{count} {scheme}" for scheme, count in _scheme_counts(artifact).most_common())]),
        *([("deviations", [_deviation_count(manifest)])] if manifest.deviations() else []),
        *((f"size, {component}", [format_megabytes(nbytes)]) for component, nbytes in sizes.items()),
        ("total size", [f"{format_megabytes(sum(sizes.values()))} in {len(manifest.files)} files"]),
        ("versions", [", ".join(f"{package} {version}" for package, version in manifest.versions.items())]),
    ]
    return Table(f"{manifest.kind} artifact {artifact.path}", [""], rows, manifest.notes)


def _calibration_set(artifact: "Artifact") -> str:
    used = artifact.manifest.calibration_set
    if used is None:
        return "none: rounded to nearest"
    return f"{used.name}, {used.samples:,} samples, {used.with_image:,} with an image, sha256 {used.sha256}"


def _token_counts(artifact: "Artifact") -> dict[str, str]:
    """Return by component the calibration tokens of the matrix with the fewest."""
    counts: dict[str, list[dict[str, int]]] = {}
    for record in artifact.manifest.weights:
        if record.calibration_tokens is not None:
            counts.setdefault(record.name.partition(".")[0], []).append(record.calibration_tokens)
    return {component: _fewest_tokens(tokens) for component, tokens in counts.items()}


def _fewest_tokens(tokens: list[dict[str, int]]) -> str:
    fewest = min(tokens, key=lambda counts: sum(counts.values()))
    text = ", ".join(f"{count:,} {modality}" for modality, count in fewest.items() if count)
    return text if all(counts == fewest for counts in tokens) else f"at least {text}"


def _scheme_counts(artifact: "Artifact") -> Counter[str]:
    return Counter(record.scheme or f"kept {record.dtype}" for record in artifact.manifest.weights)
