"""The model card of a release: evaluation, files, usage, origin and license."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcpmq.artifact import Artifact
from mcpmq.formats.kv_cache import context_table
from mcpmq.release.license import MODEL_CARD, License
from mcpmq.release.record import CHECKSUMS, RECORD, ReleaseRecord
from mcpmq.report import Report, report_table
from mcpmq.system.escaping import code_span, escape_controls, escape_markdown
from mcpmq.system.table import format_megabytes

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
ORIGINAL_CARD = "ORIGINAL_README.md"
# Metadata that is copied from the card of the original.
COPIED_METADATA = ("language", "datasets", "license_name", "license_link", "pipeline_tag", "base_model")


def render_card(
    record: ReleaseRecord, artifacts: Sequence[Artifact], report: Report, license: License, base_model: str | None
) -> str:
    """Render README.md: metadata of the Hugging Face hub in YAML, then the text.

    `artifacts` are those in the folder of the release; `base_model` is the hub id of the original, by default that of
    a downloaded one.
    """
    from huggingface_hub import ModelCard, ModelCardData  # slow to import

    tags = [*(artifact.manifest.kind for artifact in artifacts), "quantized", "multimodal", "mcpmq"]
    hub_id = base_model or (record.source.name if record.source.revision else None)
    metadata = _copied_metadata(license.card, hub_id) | {"license": license.identifier, "tags": tags}
    card = ModelCard.from_template(
        ModelCardData(**metadata),
        template_path=str(TEMPLATE),
        code=code_span,
        plain=escape_markdown,
        quote=json.dumps,
        shell=lambda text: shlex.quote(escape_controls(text)),
        record=record,
        record_file=RECORD,
        checksums=CHECKSUMS,
        evaluation=report_table(report).to_markdown().replace("## ", "## Evaluation: ", 1),
        caches=_cache_tables(artifacts, report),
        artifacts=list(zip(record.artifacts, artifacts, strict=True)),
        source_size=format_megabytes(record.source.nbytes),
        layers=artifacts[0].manifest.layers,
        images=artifacts[0].manifest.images,
        vocabulary=artifacts[0].manifest.vocabulary,
        license_files=license.text_files,
        original_card=ORIGINAL_CARD if any(file.name == MODEL_CARD for file in license.files) else None,
    )
    return f"{card}\n"


def _cache_tables(artifacts: Sequence[Artifact], report: Report) -> list[str]:
    """Return the sizes of the KV cache of every GGUF artifact, with the mean KLD of the type that was measured."""
    divergences = {
        name: {group: found.kl_divergence.value for group, found in one.differences.items()}
        for one in report.artifacts
        if (name := one.measurement.kv_cache)
    }
    sizes = [artifact.manifest.kv_cache_nbytes for artifact in artifacts]
    return [context_table(nbytes, divergences).to_markdown() for nbytes in sizes if nbytes]


def _copied_metadata(original: dict[str, Any], base_model: str | None) -> dict[str, Any]:
    """Return the plain values of the card of the original, and the base model."""
    copied = {key: value for key, value in original.items() if key in COPIED_METADATA and _is_plain(value)}
    copied.setdefault("pipeline_tag", "image-text-to-text")
    return copied | ({"base_model": base_model, "base_model_relation": "quantized"} if base_model else {})


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))
