"""Markdown of the benchmark pages: tables, estimates with their standard error, provenance of a result."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.commands import RESULTS
from mcpmq.evaluate import Estimate
from mcpmq.system.table import format_megabytes

NOT_MEASURED = "Not measured yet."


def load_result(name: str) -> dict[str, Any]:
    """Read a committed result."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def when_measured(name: str, render: Callable[[], str]) -> str:
    """Return a table of a result, or a statement if the result is missing."""
    return render() if (RESULTS / f"{name}.json").is_file() else NOT_MEASURED


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """Return a table whose first `text_columns` columns align left, the others right; without rows, a statement."""
    if not (lines := [f"| {' | '.join(row)} |" for row in rows]):
        return NOT_MEASURED
    alignment = "|---" * text_columns + "|--:" * (len(headings) - text_columns) + "|"
    return "\n".join([f"| {' | '.join(headings)} |", alignment, *lines])


def with_provenance(text: str, result: Mapping[str, Any], note: str = "") -> str:
    """Append a note, the command, commit, machine and versions of a result."""
    return f"{text}\n\n{note}{provenance_line(result)}"


def provenance_line(result: Mapping[str, Any]) -> str:
    """Return the command, commit, machine and versions of a result."""
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    return f"`{result['command']}` at {result['commit']}; {machine(result)}; {versions}."


def machine(result: Mapping[str, Any]) -> str:
    """Return processor, cores and memory."""
    facts = result["machine"]
    return f"{facts['processor']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB"


def estimates(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """Validate recorded estimates."""
    return {name: Estimate.model_validate(value) for name, value in metrics.items()}


def percent_change(ratio: Estimate) -> str:
    """Return a ratio as a change in percent, with half of its 95 % interval."""
    return f"{(ratio.value - 1) * 100:+.2f} ± {ratio.half_width * 100:.2f}"


def percent(share: Estimate, digits: int = 1) -> str:
    """Return a share in percent, with half of its 95 % interval."""
    return f"{share.value * 100:.{digits}f} ± {share.half_width * 100:.{digits}f}"


def thousandths(estimate: Estimate, sign: str = "") -> str:
    """Return an estimate in thousandths, with half of its 95 % interval."""
    return f"{estimate.value * 1000:{sign}.2f} ± {estimate.half_width * 1000:.2f}"


def megabytes(nbytes: int) -> str:
    """Return a size without its unit, for columns that name it."""
    return format_megabytes(nbytes).removesuffix(" MB")
