"""Tables of time and memory of a calibrated quantization at published widths."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.calibration_cost import LANGUAGE_LAYERS, VISION_LAYERS
from benchmarks.markdown import load_result, megabytes, table, with_provenance

LAYERS = {"language.layers.": LANGUAGE_LAYERS, "vision.layers.": VISION_LAYERS}


def stage_table(name: str = "calibration-cost") -> str:
    """Return the CPU seconds of every stage of the measured layers."""
    result = load_result(name)
    total = result["processor_seconds"]
    rows = [
        [stage, f"{seconds:.1f}", f"{100 * seconds / total:.0f} %"]
        for stage, seconds in sorted(result["stages"].items(), key=lambda item: -item[1])
    ]
    return with_provenance(table(["stage", "CPU s", "share"], rows, 1), result)


def block_table(name: str = "calibration-cost") -> str:
    """Return the CPU seconds of every measured block, and those of all blocks, extrapolated."""
    result = load_result(name)
    rows = [
        [one["block"], f"{one['processor_seconds']:.1f}", megabytes(one["peak_rss_bytes"])] for one in _shown(result)
    ]
    whole = whole_model_seconds(result)
    text = f"{result['samples']} samples, {result['tokens']:,} tokens of the language model, {result['slices']} slices."
    rows.append(["all blocks, extrapolated", f"{whole:,.0f}", ""])
    note = f"{text} Of two cores {whole / 2 / 60:.0f} minutes, if nothing else runs. "
    return with_provenance(table(["block", "CPU s", "peak RSS so far, MB"], rows, 1), result, note)


def _shown(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the blocks that take more than a second."""
    return (one for one in result["blocks"] if one["processor_seconds"] >= 1)


def whole_model_seconds(result: Mapping[str, Any]) -> float:
    """Return the CPU seconds of all blocks: those of the last layer of each kind for every layer that was left out."""
    total: float = result["processor_seconds"]
    for prefix, count in LAYERS.items():
        measured = [one["processor_seconds"] for one in result["blocks"] if one["block"].startswith(prefix)]
        if measured:
            total += (count - len(measured)) * measured[-1]
    return total
