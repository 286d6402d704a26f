"""The plot of README.md: size against mean KLD of searched and fixed recipes, as SVG for light and dark pages.

python -m benchmarks.size_plot   writes docs/images/size-*.svg from benchmarks/results/budgets.json
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.markdown import load_result
from mcpmq.evaluate import Estimate

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 74, 24, 20, 54  # of the drawing and its margins, in SVG units
MEGABYTES = (6.0, 12.0)  # range of the horizontal axis
DECADES = (-4, -1)  # range of the vertical axis, powers of ten of nats
TICKS = range(6, 13)
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


@dataclass(frozen=True, slots=True)
class Theme:
    """Colors of one drawing."""

    text: str
    grid: str
    fixed: str
    searched: str


THEMES = {
    "light": Theme("#1f2328", "#d1d9e0", "#59636e", "#0969da"),
    "dark": Theme("#f0f6fc", "#3d444d", "#9198a1", "#4493f8"),
}


def draw(result: Mapping[str, Any], theme: Theme) -> str:
    """Return the drawing of a result of benchmarks.budgets."""
    searched, fixed = [], []
    for one in sorted(result["artifacts"], key=lambda one: int(one["nbytes"])):
        point = one["nbytes"] / 1e6, Estimate.model_validate(one["kl_divergence"]["image"])
        if one["recipe"].startswith(SEARCHED):
            searched.append(point)
        else:
            fixed.append((one["recipe"], point))
    line = " ".join(f"{_x(size):.1f},{_y(kld.value):.1f}" for size, kld in searched)
    parts = [
        *_axes(theme),
        f'<polyline points="{line}" fill="none" stroke="{theme.searched}" stroke-width="2"/>',
        *(_marker(*point, theme.searched) for point in searched),
        _text(_x(searched[0][0]) + 8, _y(searched[0][1].value) - 14, SEARCH_LABEL, theme.searched, "start", bold=True),
    ]
    for recipe, (size, kld) in fixed:
        label, (right, down), anchor = LABELS[recipe]
        parts += [_marker(size, kld, theme.fixed)]
        parts += [_text(_x(size) + right, _y(kld.value) + down, label, theme.text, anchor)]
    style = "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI',Helvetica,Arial,sans-serif;font-size:13px"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" style="{style}">'
    return "\n".join(
        [head, f"<title>{SEARCH_LABEL} and fixed recipes: size and mean KLD</title>", *parts, "</svg>", ""]
    )


def _x(megabytes: float) -> float:
    low, high = MEGABYTES
    return LEFT + (megabytes - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(nats: float) -> float:
    low, high = DECADES
    return TOP + (high - math.log10(nats)) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(theme: Theme) -> list[str]:
    parts = []
    for power in range(DECADES[0], DECADES[1] + 1):
        y = _y(10.0**power)
        parts += [f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{theme.grid}"/>']
        parts += [_text(LEFT - 8, y + 4, f"{10.0**power:g}", theme.text, "end")]
    for tick in TICKS:
        parts += [_text(_x(tick), HEIGHT - BOTTOM + 20, str(tick), theme.text, "middle")]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "size of the GGUF files, MB", theme.text, "middle")]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    label = _text(0, 0, "mean KLD of image answers, nats", theme.text, "middle")
    return [*parts, f'<g transform="translate(16 {middle:.1f}) rotate(-90)">{label}</g>']


def _marker(megabytes: float, kld: Estimate, color: str) -> str:
    """Return a point with its 95 % interval."""
    x, y, low, high = _x(megabytes), _y(kld.value), _y(kld.low), _y(kld.high)
    interval = f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}" stroke-width="1.5"/>'
    return f'{interval}<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


def _text(x: float, y: float, content: str, color: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}"{weight}>{escape(content)}</text>'


def main() -> None:
    """Write both drawings."""
    IMAGES.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        (IMAGES / f"size-{name}.svg").write_text(draw(load_result("budgets"), theme))


if __name__ == "__main__":
    main()
