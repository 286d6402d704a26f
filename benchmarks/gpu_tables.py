"""Tables of docs/performance.md about calibration on a GPU."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.commands import RESULTS
from benchmarks.markdown import load_result, megabytes, table, with_provenance

HEADINGS = ("recipe", "language layers", "vision layers", "samples", "seconds", "GPU, MB", "process, MB")
SHOWN_STAGES = 14


def gpu_table() -> str:
    """Return seconds and peaks of memory of all runs, and the seconds by stage of those that measured them."""
    if not (RESULTS / "gpu.json").is_file():
        return table(HEADINGS, (), text_columns=1)
    result = load_result("gpu")
    runs = table(HEADINGS, map(_row, result["results"]), text_columns=1)
    stages = (_stages(one) for one in result["results"] if one.get("stages"))
    return with_provenance("\n\n".join((runs, *stages)), result, f"On one {result['device']}: ")


def _row(run: Mapping[str, Any]) -> list[str]:
    """Return the row of a run; of an interrupted one, the blocks that it finished."""
    seconds = f"{run['seconds']:.1f}"
    if not run.get("is_complete"):
        seconds = f"{len(run['blocks'])} of {run['num_blocks']} blocks in {seconds}"
    elif run["stages"]:
        seconds += " (by stage below)"
    peaks = megabytes(run["gpu_peak_bytes"]), megabytes(run["peak_rss_bytes"])
    return [f"`{run['recipe']}`", str(run["layers"]), str(run["vision_layers"]), str(run["samples"]), seconds, *peaks]


def _stages(run: Mapping[str, Any]) -> str:
    headings = f"stage of `{run['recipe']}`, {run['layers']} + {run['vision_layers']} layers", "seconds", "calls"
    return table(headings, _stage_rows(run), text_columns=1)


def _stage_rows(run: Mapping[str, Any]) -> Iterator[list[str]]:
    seconds = sorted(run["stages"].items(), key=lambda item: -item[1])
    for stage, value in seconds[:SHOWN_STAGES]:
        yield [stage, f"{value:.2f}", str(run["calls"].get(stage, ""))]
