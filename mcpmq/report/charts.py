"""Bar charts of a report as SVG, with the colors of the page."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TypeAlias

from mcpmq.report.report import BlockInfo, LayerErrors

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 190, 46, 54, 10  # of the drawing and its margins, in SVG units
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
GRID_LINES = 4
BlockValue: TypeAlias = Callable[[BlockInfo], float | None]


def layer_charts(layers: LayerErrors) -> list[tuple[str, str]]:
    """Return titles and drawings: errors by block, if they are known, and bits by block."""
    bits = ("Bits per weight", _bar_chart(layers.blocks, lambda block: block.bits_per_weight))
    if layers.error_basis is None:
        return [bits]
    title = "Relative error of outputs" if layers.error_basis == "outputs" else "Relative error of weights"
    return [(title, _bar_chart(layers.blocks, lambda block: block.error)), bits]


def _bar_chart(blocks: Sequence[BlockInfo], value: BlockValue) -> str:
    maximum = max(value(block) or 0.0 for block in blocks) or 1.0
    step = (WIDTH - LEFT) / len(blocks)
    bars = [_bar(block, value(block), maximum, LEFT + step * number, step) for number, block in enumerate(blocks)]
    parts = [_grid(maximum), *bars, *_component_labels(blocks, step)]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _bar(block: BlockInfo, value: float | None, maximum: float, left: float, step: float) -> str:
    component, height = block.name.partition(".")[0], (value or 0.0) / maximum * PLOT_HEIGHT
    label = "not known" if value is None else f"{value:.4g}"
    return (
        f'<rect class="bar {escape(component)}" x="{left + step * 0.12:.1f}" y="{TOP + PLOT_HEIGHT - height:.1f}"'
        f' width="{step * 0.76:.1f}" height="{height:.1f}"><title>{escape(block.name)}: {label}</title></rect>'
    )


def _grid(maximum: float) -> str:
    lines = []
    for number in range(GRID_LINES + 1):
        y = TOP + PLOT_HEIGHT * (1 - number / GRID_LINES)
        label = f"{maximum * number / GRID_LINES:.2g}"
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    return "".join(lines)


def _component_labels(blocks: Sequence[BlockInfo], step: float) -> list[str]:
    """Return the name of every component, under its bars; rotated if the bars are narrower than the name."""
    components = [block.name.partition(".")[0] for block in blocks]
    labels = []
    for name in dict.fromkeys(components):
        first, count = components.index(name), components.count(name)
        middle = LEFT + (first + count / 2) * step
        narrow = count * step < 7 * len(name)
        y = HEIGHT - BOTTOM + 18
        rotation = f' style="text-anchor:end" transform="rotate(-28 {middle:.1f} {y})"' if narrow else ""
        labels.append(f'<text class="component" x="{middle:.1f}" y="{y}"{rotation}>{escape(name)}</text>')
    return labels
