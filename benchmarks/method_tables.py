"""Tables of benchmarks/README.md on methods and token weights."""

from typing import Any

from benchmarks.markdown import (
    estimates,
    load_result,
    megabytes,
    percent,
    percent_change,
    provenance_line,
    table,
    thousandths,
    with_provenance,
)

METHOD_LABELS = {"rtn": "RTN", "rtn-imatrix": "RTN, imatrix", "gptq": "GPTQ", "auto": "auto"}
SMOOTHING_LABELS = {"none": "", "awq": "AWQ + ", "fitted": "fitted scales + "}
TARGET_LABELS = {"layer": "", "model": ", model targets"}
CALIBRATION_LABELS = {"nothing": "", "text": "text", "images": "images", "all": "both"}
GROUPS = ("image", "text")
METRIC_HEADINGS = ("perplexity change, %", "mean KLD, 10⁻³ nats", "same top-1, %")


def methods_table(scheme: str) -> str:
    """Return the metrics of all methods with one scheme."""
    rows = [_method_row(one) for one in load_result("methods")["rows"] if one["scheme"] == scheme]
    metrics = [f"{group}: {heading}" for group in GROUPS for heading in METRIC_HEADINGS]
    return table(["method", "calibration", "format", "MB", *metrics], rows, 3)


def methods_provenance() -> str:
    """Return command, commit, machine and versions."""
    return provenance_line(load_result("methods"))


def _method_row(row: dict[str, Any]) -> list[str]:
    smoothing, targets = SMOOTHING_LABELS[row["smooth"]], TARGET_LABELS[row.get("targets", "layer")]
    method = f"{smoothing}{METHOD_LABELS[row['method']]}{targets}"
    cells = [cell for group in GROUPS for cell in _metrics(row["groups"][group])]
    return [method, CALIBRATION_LABELS[row["calibration_data"]], row["format"], megabytes(row["nbytes"]), *cells]


def _metrics(metrics: dict[str, Any]) -> list[str]:
    found = estimates(metrics)
    ratio, divergence, top_1 = (found[name] for name in ("perplexity_ratio", "kl_divergence", "top_1_agreement"))
    return [percent_change(ratio), thousandths(divergence), percent(top_1)]


def token_weights_table() -> str:
    """Return the mean KLD of image and text answers for every choice of token weights."""
    result = load_result("token-weights")
    headings = ["scheme", "vision", "text", "answer", *(f"{group}: mean KLD, 10⁻³ nats" for group in GROUPS)]
    rows = []
    for one in result["rows"]:
        divergences = [estimates(one["groups"][group])["kl_divergence"] for group in GROUPS]
        weights = [f"{one[modality]:g}" for modality in ("vision", "text", "answer")]
        rows.append([one["scheme"], *weights, *map(thousandths, divergences)])
    return with_provenance(table(headings, rows, 1), result)
