"""The model card of a Hugging Face artifact: source, sizes, recipe, provenance and evaluation results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcpmq.artifact import NOT_EVALUATED, Manifest, replace_results
from mcpmq.families import family_named
from mcpmq.plan import TensorPlan
from mcpmq.recipe import to_toml
from mcpmq.system.escaping import code_span, escape_markdown
from mcpmq.system.table import Row, Table, format_megabytes

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def render_card(
    manifest: Manifest,
    config: Mapping[str, Any],
    tensors: Sequence[TensorPlan],
    format_name: str,
    usage: str,
    library: str = "transformers",
) -> str:
    """Render README.md: metadata of the Hugging Face hub in YAML, then the text.

    `format_name` is `quant_method` of config.json; `usage` names the software that loads the artifact, and `library` is
    its library on the hub.
    """
    from huggingface_hub import ModelCard, ModelCardData  # slow to import

    has_vision = any(tensor.spec.component == "vision" for tensor in tensors)
    metadata = ModelCardData(
        library_name=library,
        pipeline_tag="image-text-to-text" if has_vision else "text-generation",
        tags=["mcpmq", "quantized", format_name],
        **_base_model(manifest.source.name, config),
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        code=code_span,
        plain=escape_markdown,
        manifest=manifest,
        format_name=format_name,
        usage=usage,
        caveat=dict(family_named(manifest.family).caveats).get(format_name, ""),
        source_size=format_megabytes(manifest.source.nbytes),
        sizes=_size_table(tensors).to_markdown(),
        recipe=to_toml(manifest.recipe).rstrip(),
        versions=", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    )
    return replace_results(str(card).encode(), NOT_EVALUATED).decode()


def _base_model(source_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hub id of the original, if it is in a cache of the hub or its configuration contains one."""
    for name in (source_name, config.get("_name_or_path")):
        if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")):
            return {"base_model": name, "base_model_relation": "quantized"}
    return {}


def _size_table(tensors: Sequence[TensorPlan]) -> Table:
    components = dict.fromkeys(tensor.spec.component for tensor in tensors)
    rows = [_size_row(name, [one for one in tensors if one.spec.component == name]) for name in components]
    return Table("Sizes", ["original", "quantized", "schemes"], rows)


def _size_row(component: str, tensors: Sequence[TensorPlan]) -> Row:
    """Bytes before and after quantization, and the schemes by how much of the component they store."""
    nbytes_by_scheme: Counter[str] = Counter()
    for tensor in tensors:
        nbytes_by_scheme[str(tensor.scheme) if tensor.scheme else f"kept {tensor.dtype}"] += tensor.source_nbytes
    before, after = sum(one.source_nbytes for one in tensors), sum(one.nbytes for one in tensors)
    schemes = ", ".join(scheme for scheme, _ in nbytes_by_scheme.most_common())
    return component, [format_megabytes(before), format_megabytes(after), schemes]
