"""Table of benchmarks/README.md about the kernels for ggml's block types."""

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import load_result, table, with_provenance

OUTPUT_ERRORS = {
    "text_inputs": "inputs from text, %",
    "random_inputs": "random inputs, %",
    "by_magnitude": "weights of ggml, %",
}
HEADINGS = ("weights", "scheme", "importance", "M weights/s", "ggml", "ratio", "error, %", "ggml", "change, %")


def kernels_table() -> str:
    """Return rates and errors of the kernels and of ggml."""
    result = load_result("kernels")
    return with_provenance(table(HEADINGS, _rows(result["comparisons"]), text_columns=3), result)


def outputs_table() -> str:
    """Return the changes of the errors of outputs from ggml's search to the kernels, without importance."""
    result = load_result("layer-outputs")
    errors = {(one["scheme"], one["search"]): one for one in result["errors"]}
    rows = [
        [f"`{name}`", *(f"{100 * (own[key] / errors[name, 'ggml'][key] - 1):+.1f}" for key in OUTPUT_ERRORS)]
        for (name, search), own in errors.items()
        if search == "mcpmq"
    ]
    return with_provenance(table(("scheme", *OUTPUT_ERRORS.values()), rows, text_columns=1), result)


def _rows(comparisons: list[dict[str, Any]]) -> Iterator[list[str]]:
    for one in comparisons:
        rate, ggml_rate, error, ggml_error = one["rate"], one["ggml_rate"], one["error"], one["ggml_error"]
        rates = [f"{rate / 1e6:.0f}", f"{ggml_rate / 1e6:.1f}", f"{rate / ggml_rate:.2f}"]
        errors = [f"{100 * error:.3f}", f"{100 * ggml_error:.3f}", f"{100 * (error / ggml_error - 1):+.2f}"]
        yield [one["weights"], f"`{one['scheme']}`", "yes" if one["with_importance"] else "no", *rates, *errors]
