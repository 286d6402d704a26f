"""Tables of benchmarks/README.md on real weights with images."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import estimates, percent, percent_change, provenance_line, table, thousandths
from benchmarks.real_weights import images
from benchmarks.real_weights_tables import ENGINES, METHODS, ratio_cell
from mcpmq.evaluate import Estimate

HEADINGS = (
    "language",
    "its layers",
    "vision, connector",
    "method",
    "calibration",
    "engine",
    "bits per weight",
    "images: mean KLD, 10⁻³ nats",
    "ratio to the first row [95 %]",
    "perplexity change, %",
    "same top-1, %",
    "exact match change, points",
    "text: mean KLD, 10⁻³ nats",
    "same top-1, %",
    "processor seconds",
)
TEXT_COLUMNS = 6
CALIBRATION = {"text": "texts", "images": "images", "both": "images and texts"}


def images_table() -> str:
    """Return the variants with the differences of answers about images and of texts."""
    rows = images.load()["rows"]
    return table(HEADINGS, [_row(row, rows[0]) for row in rows], TEXT_COLUMNS)


def images_note() -> str:
    """Return the results of the original, and the provenance."""
    result = images.load()
    if not result["rows"]:
        return ""
    image, text = (result["test"][group] for group in ("image", "text"))
    match = percent(Estimate.model_validate(image["exact_match"]))
    facts = f"{image['tokens']:,} tokens of {image['samples']} answers about images, perplexity of the original"
    facts += f" {image['perplexity']['value']:.3f}, exact match {match} %; {text['tokens']:,} tokens of"
    return f"{facts} {text['samples']} texts, perplexity {text['perplexity']['value']:.1f}. {provenance_line(result)}"


def _scheme(row: Mapping[str, Any], component: str) -> str:
    """Return the scheme of the quantized matrices of a component, or that it is kept."""
    return next((scheme for glob, scheme in row["weights"].items() if glob.startswith(component)), "kept")


def _row(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    parts = [_scheme(row, "language"), str(row["layers"]), _scheme(row, "vision")]
    tokens = f"{CALIBRATION[row['calibration']]}, {row['calibration_tokens']:,} tokens"
    calibration = tokens if row["calibration_tokens"] else "none"
    method = "not quantized" if parts[0] == "f32" else METHODS[row["method"]]
    image, text = (estimates(row[group]) for group in ("image", "text"))
    cells = [*parts, method, calibration, ENGINES[row["format"]], f"{row['bits_per_weight']:.2f}"]
    cells += [thousandths(image["kl_divergence"]), ratio_cell(row, base), percent_change(image["perplexity_ratio"])]
    cells += [percent(image["top_1_agreement"]), percent(image["exact_match_change"])]
    cells += [thousandths(text["kl_divergence"]), percent(text["top_1_agreement"])]
    return [*cells, f"{row['cost']['processor_seconds']:,.0f}"]
