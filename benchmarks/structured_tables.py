"""Tables of the results of structured compression and of int8 inputs."""

from collections.abc import Mapping
from typing import Any

from benchmarks import structured_plot
from benchmarks.markdown import estimates, load_result, megabytes, percent, table, thousandths, with_provenance
from mcpmq.evaluate import Estimate


def _kld(row: Mapping[str, Any], group: str) -> str:
    return thousandths(estimates(row["groups"][group])["kl_divergence"])


def images_table() -> str:
    """Return the table of image-token budgets."""
    result, rows = load_result("structured-images"), []
    for row in result["rows"]:
        phases, tokens = row["phases"], row["image_tokens"]
        milliseconds = 1000 * tokens / phases["prefill_tokens_per_second"]
        exact = percent(estimates(row["exact_match"])["image"])
        cache = row["kv_cache_bytes_per_token"] * tokens / 1000
        cells = [f"{tokens:.1f}", f"{milliseconds:.1f}", f"{cache:.0f}", _kld(row, "image"), exact]
        rows.append([str(row["max_slice_nums"]), *cells])
    headings = (
        "`max_slice_nums`",
        "image tokens",
        "prefill, ms",
        "KV cache, kB",
        "mean KLD, 10⁻³ nats",
        "exact match, %",
    )
    return with_provenance(table(headings, rows, text_columns=1), result)


def layers_table() -> str:
    """Return the steps of the removal of layers."""
    result = load_result("structured-layers")
    rows = [
        [
            component,
            ", ".join(step["layers"]),
            f"{curve['influences'][step['layers'][-1]]:.4f}",
            f"{step['kl_divergence']:.4f}",
        ]
        for component, curve in result["curves"].items()
        for step in curve["steps"]
    ]
    headings = ("component", "removed", "influence of the last", "mean KLD, nats")
    return with_provenance(table(headings, rows, text_columns=2), result)


def removed_table() -> str:
    """Return artifacts without layers in two engines."""
    result, rows = load_result("structured-removed"), []
    for row in result["rows"]:
        speeds = [f"{row['phases'][key]:,.0f}" for key in ("prefill_tokens_per_second", "decode_tokens_per_second")]
        name, sizes = ", ".join(row["removed"]) or "none", [megabytes(row["nbytes"]), megabytes(row["peak_rss_bytes"])]
        groups = [_kld(row, group) for group in ("image", "text")]
        rows.append([row["format"], name, *sizes, str(row["kv_cache_bytes_per_token"]), *speeds, *groups])
    headings = ("format", "removed", "MB", "peak memory, MB", "KV cache, bytes a token")
    speed_headings = ("prefill, tokens/s", "decode, tokens/s")
    accuracy = ("images: mean KLD, 10⁻³ nats", "texts: mean KLD, 10⁻³ nats")
    return with_provenance(table((*headings, *speed_headings, *accuracy), rows, text_columns=2), result)


def front_table() -> str:
    """Return the divergence of searched recipes by limit, with schemes alone and with structured compression."""
    result, rows = load_result("structured-front"), []
    for row in result["rows"]:
        found = Estimate.model_validate(row["divergence"])
        used = row["nbytes" if row["resource"] == "file size" else "memory_nbytes"]
        kind = row["structure"] or ("schemes; structure did not pay" if row["structured"] else "schemes")
        cells = [f"{used:,}", f"{1000 * row['rank_score']:.2f}", thousandths(found)]
        rows.append([row["resource"], f"{row['limit_nbytes']:,}", kind, *cells])
    headings = ("limit of", "limit, bytes", "chosen", "bytes", "rank score, 10⁻³", "divergence, 10⁻³ nats")
    return with_provenance(table(headings, rows, text_columns=3), result)


def cost_table() -> str:
    """Return the measured loss of the choices."""
    result = load_result("structured-front")
    rows = [[name, cost] for name, cost in result["costs"].items()]
    return table(("choice", "loss"), rows, text_columns=2)


def front_images() -> str:
    """Return the drawings for a page in this folder."""
    names = (f"structured-{resource.replace(' ', '-')}-light.svg" for resource in structured_plot.RESOURCES)
    titles = (f"Searched recipes: {resource} and divergence" for resource in structured_plot.RESOURCES)
    return "\n\n".join(f"![{title}](../docs/images/{name})" for title, name in zip(titles, names, strict=True))


def w8a8_table() -> str:
    """Return the divergence and the time of int8 weights with float and with int8 inputs."""
    result = load_result("structured-w8a8")
    rows = [
        [row["kind"], row["engine"], f"{1000 * row['mean_kld']:.3f}", f"{row['cpu_seconds']:.1f}"]
        for row in result["rows"]
    ]
    headings = ("kind", "engine", "mean KLD, 10⁻³ nats", "processor seconds")
    return with_provenance(table(headings, rows, text_columns=2), result)


def speed_table() -> str:
    """Return the table of the documentation."""
    result = load_result("w8a8-speed")
    headings = ("product", "tokens", "microseconds", "relative error")
    rows = [
        [one["product"], str(one["tokens"]), f"{one['microseconds']:,.0f}", f"{one['relative_error']:.4f}"]
        for one in result["products"]
    ]
    return with_provenance(table(headings, rows, text_columns=1), result)
