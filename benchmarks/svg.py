"""Parts of the plots of the documents, as SVG for light and dark pages: colors, axes, markers, text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mcpmq.evaluate import Estimate


@dataclass(frozen=True, slots=True)
class Theme:
    """Colors of one drawing."""

    text: str
    grid: str
    fixed: str
    searched: str
    others: tuple[str, ...]


THEMES = {
    "light": Theme("#1f2328", "#d1d9e0", "#59636e", "#0969da", ("#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#9a6700")),
    "dark": Theme("#f0f6fc", "#3d444d", "#9198a1", "#4493f8", ("#f0883e", "#3fb950", "#ab7df8", "#f85149", "#d29922")),
}
STYLE = "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI',Helvetica,Arial,sans-serif;font-size:13px"


@dataclass(frozen=True, slots=True)
class Frame:
    """Sizes in SVG units, and the ranges of the axes; the vertical one is logarithmic, in powers of ten."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    values: tuple[float, float]
    decades: tuple[int, int]

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high = self.values
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self.decades
        height = self.height - self.top - self.bottom
        return self.top + (high - math.log10(value)) / (high - low) * height

    def axes(self, theme: Theme, ticks: Sequence[float], labels: tuple[str, str]) -> list[str]:
        """Return grid lines, ticks, and the labels of the horizontal and the vertical axis."""
        parts = []
        for power in range(self.decades[0], self.decades[1] + 1):
            y = self.y(10.0**power)
            parts += [f'<path d="M{self.left} {y:.1f}H{self.width - self.right}" stroke="{theme.grid}"/>']
            parts += [text(self.left - 8, y + 4, f"{10.0**power:g}", theme.text, "end")]
        for tick in ticks:
            parts += [text(self.x(tick), self.height - self.bottom + 20, f"{tick:g}", theme.text, "middle")]
        parts += [text((self.left + self.width - self.right) / 2, self.height - 10, labels[0], theme.text, "middle")]
        middle, label = (self.top + self.height - self.bottom) / 2, text(0, 0, labels[1], theme.text, "middle")
        return [*parts, f'<g transform="translate(16 {middle:.1f}) rotate(-90)">{label}</g>']

    def marker(self, value: float, estimate: Estimate, color: str) -> str:
        """Return a point with its 95 % interval."""
        x, y, low, high = self.x(value), self.y(estimate.value), self.y(estimate.low), self.y(estimate.high)
        interval = f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}" stroke-width="1.5"/>'
        return f'{interval}<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'

    def line(self, points: Sequence[tuple[float, float]], color: str) -> str:
        """Return a line through points."""
        pairs = " ".join(f"{self.x(value):.1f},{self.y(height):.1f}" for value, height in points)
        return f'<polyline points="{pairs}" fill="none" stroke="{color}" stroke-width="2"/>'

    def drawing(self, title: str, parts: Sequence[str]) -> str:
        """Return the SVG document."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img"'
        return "\n".join([f'{head} style="{STYLE}">', f"<title>{title}</title>", *parts, "</svg>", ""])


def text(x: float, y: float, content: str, color: str, anchor: str, *, bold: bool = False) -> str:
    """Return a text; `anchor` is `start`, `middle` or `end`."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}"{weight}>{escape(content)}</text>'
