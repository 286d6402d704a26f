"""Table of benchmarks/README.md about the calibration-set study."""

from collections.abc import Mapping

from benchmarks.markdown import load_result, table, with_provenance

HEADINGS = ("calibration set", "targets", "samples", "images", "tokens", "KLD, images", "KLD, text")
LABELS = {"nearest": "none: round to nearest", "samples": "drawn", "mixture": "mixture", "turns": "conversations"}


def study_table() -> str:
    """Return the KL divergence of every measured calibration set with half of its interval, in thousandths of a nat."""
    result = load_result("calibration-study")
    rows = []
    for one in result["rows"]:
        share = one.get("image_share")
        label = LABELS[one["group"]] + ("" if share is None else f", {share:.0%} with an image")
        counts = [f"{one[key]:,}" for key in ("images", "tokens")]
        divergences = [_in_thousandths(one["kl_divergence"][group]) for group in ("image", "text")]
        rows.append([label, one.get("targets", ""), str(one.get("samples", 0)), *counts, *divergences])
    return with_provenance(table(HEADINGS, rows, text_columns=2), result)


def _in_thousandths(estimate: Mapping[str, float]) -> str:
    return f"{1000 * estimate['value']:.1f} ± {500 * (estimate['high'] - estimate['low']):.1f}"
