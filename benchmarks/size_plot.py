"""The plot of README.md: size against mean KLD of searched and fixed recipes, as SVG for light and dark pages.

python -m benchmarks.size_plot   writes docs/images/size-*.svg from benchmarks/results/budgets.json
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.markdown import load_result
from benchmarks.svg import THEMES, Frame, Theme, text
from mcpmq.evaluate import Estimate

IMAGES = ROOT / "docs" / "images"
# Megabytes, and powers of ten of nats.
FRAME = Frame(width=760, height=380, left=74, right=24, top=20, bottom=54, values=(6.0, 12.0), decades=(-4, -1))
TICKS = range(6, 13)
AXES = "size of the GGUF files, MB", "mean KLD of image answers, nats"
SEARCHED = "search-"
LABELS = {  # recipe -> label, offset from its point, anchor
    "phone-int4": ("round to nearest, int4 + int8", (-10, 5), "end"),
    "quality-int4": ("round to nearest, K-quants", (10, 5), "start"),
    "calibrated-int4": ("GPTQ, int4 + int8", (-10, 5), "end"),
    "calibrated-gguf-int4": ("GPTQ, q4_k + int8", (-10, 5), "end"),
    "calibrated-quality-int4": ("GPTQ, K-quants", (10, 5), "start"),
    "phone-int8": ("round to nearest, int8", (-10, -8), "end"),
}
SEARCH_LABEL = "mcpmq search"


def draw(result: Mapping[str, Any], theme: Theme) -> str:
    """Return the drawing of a result of benchmarks.budgets."""
    searched, fixed = [], []
    for one in sorted(result["artifacts"], key=lambda one: int(one["nbytes"])):
        point = one["nbytes"] / 1e6, Estimate.model_validate(one["kl_divergence"]["image"])
        if one["recipe"].startswith(SEARCHED):
            searched.append(point)
        else:
            fixed.append((one["recipe"], point))
    first_size, first = searched[0]
    parts = [
        *FRAME.axes(theme, TICKS, AXES),
        FRAME.line([(size, kld.value) for size, kld in searched], theme.searched),
        *(FRAME.marker(*point, theme.searched) for point in searched),
        text(FRAME.x(first_size) + 8, FRAME.y(first.value) - 14, SEARCH_LABEL, theme.searched, "start", bold=True),
    ]
    for recipe, (size, kld) in fixed:
        label, (right, down), anchor = LABELS[recipe]
        parts += [FRAME.marker(size, kld, theme.fixed)]
        parts += [text(FRAME.x(size) + right, FRAME.y(kld.value) + down, label, theme.text, anchor)]
    return FRAME.drawing(f"{SEARCH_LABEL} and fixed recipes: size and mean KLD", parts)


def main() -> None:
    """Write both drawings."""
    IMAGES.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        (IMAGES / f"size-{name}.svg").write_text(draw(load_result("budgets"), theme))


if __name__ == "__main__":
    main()
