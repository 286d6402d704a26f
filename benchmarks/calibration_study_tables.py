"""Table of benchmarks/README.md about the calibration-set study."""

from benchmarks.markdown import load_result, table, with_provenance

HEADINGS = ("calibration set", "samples", "images", "tokens", "KLD, images", "KLD, text")
LABELS = {"nearest": "none: round to nearest", "samples": "drawn", "mixture": "mixture", "turns": "conversations"}


def study_table() -> str:
    """Return the KL divergence of every measured calibration set, in thousandths of a nat."""
    result = load_result("calibration-study")
    rows = []
    for one in result["rows"]:
        share = one.get("image_share")
        label = LABELS[one["group"]] + ("" if share is None else f", {share:.0%} with an image")
        counts = [f"{one[key]:,}" for key in ("images", "tokens")]
        divergences = [f"{1000 * one['kl_divergence'][group]:.2f}" for group in ("image", "text")]
        rows.append([label, str(one.get("samples", 0)), *counts, *divergences])
    return with_provenance(table(HEADINGS, rows, text_columns=1), result)
