"""Table of benchmarks/README.md about the kernels for ggml's block types."""

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import load_result, table, with_provenance

HEADINGS = ("weights", "scheme", "importance", "M weights/s", "ggml", "ratio", "error, %", "ggml", "change, %")


def kernels_table() -> str:
    """Return rates and errors of the kernels and of ggml."""
    result = load_result("kernels")
    return with_provenance(table(HEADINGS, _rows(result["comparisons"]), text_columns=3), result)


def _rows(comparisons: list[dict[str, Any]]) -> Iterator[list[str]]:
    for one in comparisons:
        rate, ggml_rate, error, ggml_error = one["rate"], one["ggml_rate"], one["error"], one["ggml_error"]
        rates = [f"{rate / 1e6:.0f}", f"{ggml_rate / 1e6:.1f}", f"{rate / ggml_rate:.2f}"]
        errors = [f"{100 * error:.3f}", f"{100 * ggml_error:.3f}", f"{100 * (error / ggml_error - 1):+.2f}"]
        yield [one["weights"], f"`{one['scheme']}`", "yes" if one["with_importance"] else "no", *rates, *errors]
