"""Text of benchmarks/README.md about the time and memory of a search."""

from benchmarks.markdown import load_result, with_provenance
from mcpmq.system.table import format_megabytes


def search_cost() -> str:
    """Return the size of the checkpoint, and the cost of the search."""
    result = load_result("search-speed")
    cost = result["cost"]
    size, peak = format_megabytes(result["weights_nbytes"]), format_megabytes(cost["peak_rss_bytes"])
    text = f"{size} of weights: {cost['processor_seconds']:.0f} processor seconds on one thread, peak RSS {peak}."
    return with_provenance(text, result)
