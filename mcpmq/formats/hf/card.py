"""The model card: what an artifact is, from what and how it was made, and what that cost where it was measured."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcpmq.artifact import Manifest
from mcpmq.plan import Step
from mcpmq.system.table import Table, megabytes

UNMEASURED = "Not measured yet: `mcpmq evaluate` measures it and writes the figures here."
MEASURED = "## What it cost"  # the last heading; what follows is replaced when it is measured


def card(manifest: Manifest, config: Mapping[str, Any], steps: Sequence[Step], method: str, readers: str) -> str:
    """The text of README.md, with metadata as Hugging Face reads it: a block of YAML at the top.

    `method` is how config.json calls the format; `readers` says what loads it, and what they must know.
    """
    source = manifest.source
    parts = [
        *_metadata(config, method, sees=any(step.spec.component == "vision" for step in steps)),
        f"# {source.name}, {manifest.recipe['name']}, {method}",
        "",
        f"`{source.name}` ({megabytes(source.nbytes)}) with its weights quantized by mcpmq"
        f" {manifest.versions['mcpmq']}. The licence of the original applies to it.",
        "",
        readers,
        "",
        _sizes(steps).markdown(),
        "## Recipe",
        "",
        "```toml",
        *_toml(manifest.recipe),
        "```",
        "",
        *_provenance(manifest),
        "",
    ]
    return with_figures("\n".join(parts) + f"\n{MEASURED}\n", UNMEASURED)


def with_figures(text: str, figures: str) -> str:
    """The same card with other figures under its last heading."""
    return f"{text.partition(MEASURED)[0]}{MEASURED}\n\n{figures.rstrip()}\n"


def _metadata(config: Mapping[str, Any], method: str, *, sees: bool) -> Iterator[str]:
    """What `ModelCardData` of huggingface_hub knows, of which it is sure."""
    task = "image-text-to-text" if sees else "text-generation"
    yield from ("---", "library_name: transformers", f"pipeline_tag: {task}")
    published = config.get("_name_or_path")
    if isinstance(published, str) and published.count("/") == 1 and not published.startswith((".", "/")):
        yield from (f"base_model: {json.dumps(published)}", "base_model_relation: quantized")
    yield from ("tags:", "- mcpmq", "- quantized", f"- {method}", "---", "")


def _sizes(steps: Sequence[Step]) -> Table:
    """Bytes of every component before and after, and what its weights became."""
    components = dict.fromkeys(step.spec.component for step in steps)
    rows = []
    for component in components:
        held = [step for step in steps if step.spec.component == component]
        kinds: Counter[str] = Counter()
        for step in held:
            kinds[str(step.scheme) if step.scheme else f"kept {step.dtype}"] += step.source_nbytes
        before, after = sum(step.source_nbytes for step in held), sum(step.nbytes for step in held)
        told = ", ".join(kind for kind, _ in kinds.most_common())
        rows.append((component, [megabytes(before), megabytes(after), told]))
    return Table("What became of it", ["original", "now", "weights"], rows)


def _toml(recipe: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in recipe.items() if not isinstance(value, Mapping)}
    yield from (f"{key} = {json.dumps(value)}" for key, value in plain.items())
    tables = {key: value for key, value in recipe.items() if isinstance(value, Mapping)}
    for key, table in tables.items():
        yield from ("", f"[{key}]")
        yield from (f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items())


def _provenance(manifest: Manifest) -> Iterator[str]:
    yield f"- original: sha256 `{manifest.source.sha256}`"
    if used := manifest.calibrated_on:
        yield (
            f"- calibrated on `{used.name}`: {used.samples:,} samples, {used.with_image:,} with an image,"
            f" sha256 `{used.sha256}`"
        )
    else:
        yield "- rounded to the nearest: no calibration sample decided a weight"
    yield f"- made with {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}"
    yield from (f"- {note}" for note in manifest.notes)
    yield "- `mcpmq.json` says what was done to every weight, and holds the hash of every file"
