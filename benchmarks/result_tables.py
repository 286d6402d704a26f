"""Tables of benchmarks/README.md that show committed results."""

from collections.abc import Iterator
from typing import Any

from benchmarks.commands import RESULTS
from benchmarks.markdown import (
    estimates,
    load_result,
    machine,
    megabytes,
    percent,
    percent_change,
    table,
    thousandths,
    with_provenance,
)
from mcpmq import report as reports
from mcpmq.report import Report, ablation
from mcpmq.report.ablation import ComponentAblation
from mcpmq.system.table import Table, format_megabytes

METHOD_LABELS = {"rtn": "RTN", "gptq": "GPTQ"}
TOOL_LABELS = {"mcpmq": "mcpmq", "gptqmodel": "GPTQModel", "autoround": "AutoRound"}
VARIANT_LABELS = {
    "rtn": "RTN",
    "gptq": "GPTQ",
    "awq-gptq": "AWQ + GPTQ",
    "gptq-desc-act": "GPTQ, `desc_act`",
    "awq": "AWQ",
    "200-steps": "200 steps",
}


def load_report(name: str) -> Report:
    """Read a committed report."""
    return Report.load(RESULTS / f"{name}.json")


def report_table(name: str) -> str:
    """Return the table of a committed report under a bold title."""
    return _with_bold_title(reports.report_table(load_report(name)))


def ablation_table(method: str) -> str:
    """Return the loss of each component at one scheme."""
    content = (RESULTS / f"ablation-{method}.json").read_bytes()
    return _with_bold_title(ablation.ablation_table(ComponentAblation.model_validate_json(content)))


def _with_bold_title(rendered: Table) -> str:
    title, _, rest = rendered.to_markdown().rstrip().partition("\n")
    return f"**{title.removeprefix('## ')}**\n{rest}"


def budgets_table() -> str:
    """Return size and mean KLD of the searched and the fixed recipes."""
    result = load_result("budgets")
    rows = []
    for one in sorted(result["artifacts"], key=lambda one: int(one["nbytes"])):
        divergences = [one["kl_divergence"][group] for group in ("image", "text")]
        cells = [f"{kld['value'] * 1000:.2f} ± {(kld['high'] - kld['low']) * 500:.2f}" for kld in divergences]
        name = "**searched**" if one["recipe"].startswith("search-") else f"`{one['recipe']}`"
        rows.append([name, f"{one['nbytes']:,}", *cells])
    return with_provenance(
        table(["recipe", "bytes", "image: mean KLD, 10⁻³ nats", "text: mean KLD, 10⁻³ nats"], rows, 1), result
    )


def engines_table() -> str:
    """Return the difference of token losses between each engine and PyTorch with unquantized weights."""
    report = load_report("engine-baseline")
    headings = ["engine", "tokens", "largest difference of a token's loss", "mean difference"]
    rows = []
    for result in report.artifacts:
        pairs = zip(report.original.samples, result.measurement.samples, strict=True)
        differences = [b - a for one, other in pairs for a, b in zip(one.losses, other.losses, strict=True)]
        largest, mean = max(map(abs, differences)), sum(differences) / len(differences)
        rows.append([result.measurement.engine, f"{len(differences):,}", f"{largest:.1e}", f"{mean:+.1e}"])
    return table(headings, rows, 1)


def engine_preprocessing_table() -> str:
    """Return the change of perplexity with published slices and with those of llama.cpp, unquantized."""
    names = ("engine-baseline", "engine-preprocessing")
    published, engine = (load_report(name).artifacts[0].differences for name in names)
    rows = [
        [group, *(f"{percent_change(one[group].perplexity_ratio)} %" for one in (published, engine))]
        for group in ("image", "nonsquare")
    ]
    return table(["images", "published slices", "slices of llama.cpp"], rows, 1)


def image_shuffle_table() -> str:
    """Return the perplexity of the original with the right images and with those of other samples."""
    reports_by_name = (load_report(name) for name in ("reference", "shuffled"))
    right, wrong = (report.original.groups["image"].perplexity for report in reports_by_name)
    rows = [
        ["the sample's image", f"{right.value:.3f} ± {right.half_width:.3f}"],
        ["the image of another sample", f"{wrong.value:.3f} ± {wrong.half_width:.3f}"],
        ["ratio", f"{wrong.value / right.value:.2f}"],
    ]
    return table(["input", "perplexity of image answers"], rows, 1)


def conversion_table(name: str) -> str:
    """Return seconds, memory and bytes of every conversion command."""
    result = load_result(name)
    rows = [
        [
            f"`{one['command']}`",
            f"{one['seconds']:.1f}",
            format_megabytes(one["peak_rss_bytes"]),
            format_megabytes(one["written_bytes"]),
        ]
        for one in result["commands"]
    ]
    return with_provenance(table(["command", "seconds", "peak RSS", "written"], rows, 1), result)


def stages_table() -> str:
    """Return the time and speed of every stage of quantization at published widths."""
    result = load_result("stages")
    rows = []
    for one in result["stages"]:
        speed = f"{one['gflop'] / one['seconds']:,.0f}" if one["gflop"] else ""
        weights = f"{one['rows'] * one['columns'] / one['seconds'] / 1e6:,.1f}"
        rows.append([one["stage"], f"{one['rows']} x {one['columns']}", f"{one['seconds']:.2f}", speed, weights])
    headings = ["stage", "rows x columns", "seconds", "GFLOP/s", "million weights/s"]
    note = f"{result['tokens']:,} tokens, {result['threads']} threads. "
    return with_provenance(table(headings, rows, 2), result, note)


def vision_table(name: str) -> str:
    """Return accuracy, bytes and encoding time of vision and connector, by format, scheme and method."""
    result = load_result(name)
    evaluated = "image" in result["rows"][0]
    metrics = ["perplexity change, %", "mean KLD, 10⁻³ nats", "same top-1, %"] if evaluated else []
    unit, scale = ("ms/slice", 1000) if evaluated else ("s/slice", 1)
    rows = [
        [
            *_vision_settings(one),
            *_vision_metrics(one),
            megabytes(one["nbytes"]),
            f"{one['seconds_per_slice'] * scale:.1f}",
        ]
        for one in result["rows"]
    ]
    headings = ["vision and connector", "method", *metrics, "MB", unit]
    return with_provenance(table(headings, rows, 2), result)


def _vision_settings(row: dict[str, Any]) -> list[str]:
    stored = f"{row['format']} `{row['scheme']}`{', u8 inputs' * bool(row['activations'])}"
    if row["scheme"] in ("f16", "f32"):
        return [stored, ""]
    return [stored, "SmoothQuant + " * (row["smooth"] == "smoothquant") + METHOD_LABELS[row["method"]]]


def _vision_metrics(row: dict[str, Any]) -> list[str]:
    if "image" not in row:
        return []
    metrics = estimates(row["image"])
    top_1 = percent(metrics["top_1_agreement"], digits=2)
    return [percent_change(metrics["perplexity_ratio"]), thousandths(metrics["kl_divergence"]), top_1]


def peers_table(model: str, group: str) -> str:
    """Return the metrics of every tool on the held-out answers of one group."""
    headings = [
        "",
        "calibration",
        "mean KLD, 10⁻³ nats",
        "difference from first row",
        "perplexity change",
        "same top-1",
    ]
    rows = []
    for variant in _peer_variants(model):
        metrics = estimates(variant["groups"][group])
        increase = metrics["kl_divergence_increase"]
        cells = [
            thousandths(metrics["kl_divergence"]),
            thousandths(increase, "+") if increase.standard_error else "",
            f"{percent_change(metrics['perplexity_ratio'])} %",
            f"{percent(metrics['top_1_agreement'])} %",
        ]
        rows.append([_peer_label(variant), variant["calibration_data"], *cells])
    return table(headings, rows, 2)


def peer_costs_table() -> str:
    """Return the cost of quantization with every tool, and the bits per weight."""
    result = load_result("peers")
    rows = []
    for variant in _peer_variants("reference"):
        cost, tokens = variant["cost"], result["tokens"].get(variant["calibration_data"], 0)
        seconds, peak = f"{cost['processor_seconds']:.0f}", format_megabytes(cost["peak_rss_bytes"])
        settings = [_peer_label(variant), variant["calibration_data"], f"{tokens:,}"]
        rows.append([*settings, seconds, peak, f"{variant['bits_per_weight']:.2f}"])
    headings = ["", "calibration", "tokens", "processor seconds", "peak RSS", "bits per weight"]
    packages = {package: number for versions in result["versions"].values() for package, number in versions.items()}
    versions = dict(sorted(packages.items(), key=lambda item: item[0].lower()))
    return with_provenance(table(headings, rows, 2), result | {"versions": versions})


def _peer_variants(model: str) -> Iterator[dict[str, Any]]:
    yield from (variant for variant in load_result("peers")["variants"] if variant["model"] == model)


def _peer_label(variant: dict[str, Any]) -> str:
    label = f"{TOOL_LABELS[variant['tool']]}, {VARIANT_LABELS[variant['method']]}"
    return f"**{label}**" if (variant["tool"], variant["method"]) == ("mcpmq", "awq-gptq") else label


def compat_table() -> str:
    """Return the largest logit difference between the loader of each Hugging Face format and mcpmq."""
    result = load_result("compat")
    rows = []
    for one in result["comparisons"]:
        packages = ", ".join(f"{package} {number}" for package, number in one["packages"].items())
        share = one["max_logit_difference"] / one["logits_standard_deviation"]
        difference = f"{one['max_logit_difference']:.2g} ({share:.2%} of a standard deviation)"
        sizes = [format_megabytes(one[key]) for key in ("written_bytes", "export_peak_rss_bytes")]
        rows.append([one["format"], f"`{one['scheme']}`", packages, one["compute_dtype"], difference, *sizes])
    headings = [
        "format",
        "scheme",
        "loaded by",
        "compute dtype",
        "largest logit difference",
        "written",
        "peak RSS of export",
    ]
    return f"{table(headings, rows, 4)}\n\n`{result['command']}` on {result['date']}; {machine(result)}."
