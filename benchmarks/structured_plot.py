"""The plot of benchmarks/README.md: size and memory against divergence of searched recipes, with and without structure.

python -m benchmarks.structured_plot   writes docs/images/structured-*.svg from benchmarks/results/structured-front.json
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.markdown import load_result
from benchmarks.svg import THEMES, Frame, Theme, text
from mcpmq.evaluate import Estimate

IMAGES = ROOT / "docs" / "images"
RESOURCES = {"file size": ("nbytes", "size of the GGUF files, MB"), "memory": ("memory_nbytes", "device memory, MB")}
LABELS = {False: "schemes", True: "schemes and structured compression"}
AXIS = "divergence, nats"


def draw(rows: Sequence[Mapping[str, Any]], resource: str, theme: Theme) -> str:
    """Return the drawing of the rows of a resource."""
    key, label = RESOURCES[resource]
    shown = [one for one in rows if one["resource"] == resource]
    megabytes = [one[key] / 1e6 for one in shown]
    frame = _frame(megabytes, [Estimate.model_validate(one["divergence"]) for one in shown])
    ticks = [round(frame.values[0] + step * (frame.values[1] - frame.values[0]) / 4, 1) for step in range(5)]
    parts = frame.axes(theme, ticks, (label, AXIS))
    for number, structured in enumerate(LABELS):
        color = theme.searched if structured else theme.fixed
        points = sorted(
            (size, Estimate.model_validate(one["divergence"]))
            for size, one in zip(megabytes, shown, strict=True)
            if one["structured"] == structured
        )
        parts += [frame.line([(size, found.value) for size, found in points], color)]
        parts += [frame.marker(*point, color) for point in points]
        parts += [text(frame.width - frame.right, frame.top + 16 * (number + 1), LABELS[structured], color, "end")]
    return frame.drawing(f"{label} and divergence of searched recipes", parts)


def _frame(megabytes: Sequence[float], found: Sequence[Estimate]) -> Frame:
    low, high = min(one.low for one in found), max(one.high for one in found)
    decades = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = math.floor(5 * min(megabytes)) / 5, math.ceil(5 * max(megabytes)) / 5
    return Frame(760, 340, left=74, right=24, top=20, bottom=54, values=values, decades=decades)


def drawings() -> dict[str, str]:
    """Return all drawings by the name of their file."""
    rows = load_result("structured-front")["rows"]
    return {
        f"structured-{resource.replace(' ', '-')}-{name}.svg": draw(rows, resource, theme)
        for resource in RESOURCES
        for name, theme in THEMES.items()
    }


def main() -> None:
    """Write all drawings."""
    for name, drawing in drawings().items():
        (IMAGES / name).write_text(drawing)


if __name__ == "__main__":
    main()
