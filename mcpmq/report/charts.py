"""Drawings for the page of a report, as SVG that takes its colours from the page."""

from collections.abc import Callable, Sequence
from html import escape

from mcpmq.report.report import BlockFacts, LayerPicture

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 190, 46, 54, 10
GRID_LINES = 4
Value = Callable[[BlockFacts], float | None]


def layer_pictures(picture: LayerPicture) -> list[tuple[str, str]]:
    """Titles and drawings: bits by block, and errors by block where they are known."""
    bits = ("Bits per weight", _bars(picture.blocks, lambda block: block.bits_per_weight))
    if picture.errors_of is None:
        return [bits]
    what = "Relative error of outputs" if picture.errors_of == "outputs" else "Relative error of weights"
    return [(what, _bars(picture.blocks, lambda block: block.error)), bits]


def _bars(blocks: Sequence[BlockFacts], value: Value) -> str:
    values = [value(block) or 0.0 for block in blocks]
    largest = max(values) or 1.0
    step, plot = (WIDTH - LEFT) / len(blocks), HEIGHT - TOP - BOTTOM
    parts = [_grid(largest, plot)]
    for number, (block, height) in enumerate(zip(blocks, values, strict=True)):
        component = block.name.partition(".")[0]
        x, drawn = LEFT + step * (number + 0.12), height / largest * plot
        told = "not known" if value(block) is None else f"{height:.4g}"
        parts.append(
            f'<rect class="bar {escape(component)}" x="{x:.1f}" y="{TOP + plot - drawn:.1f}" width="{step * 0.76:.1f}"'
            f' height="{drawn:.1f}"><title>{escape(block.name)}: {told}</title></rect>'
        )
    parts += _components(blocks, step)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _grid(largest: float, plot: float) -> str:
    lines = []
    for number in range(GRID_LINES + 1):
        y = TOP + plot * (1 - number / GRID_LINES)
        told = f"{largest * number / GRID_LINES:.2g}"
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}">{told}</text>')
    return "".join(lines)


def _components(blocks: Sequence[BlockFacts], step: float) -> list[str]:
    """The name of every component under its bars."""
    names = [block.name.partition(".")[0] for block in blocks]
    labels = []
    for name in dict.fromkeys(names):
        first, count = names.index(name), names.count(name)
        middle = LEFT + (first + count / 2) * step
        narrow = count * step < 7 * len(name)
        y = HEIGHT - BOTTOM + 18
        turned = f' style="text-anchor:end" transform="rotate(-28 {middle:.1f} {y})"' if narrow else ""
        labels.append(f'<text class="component" x="{middle:.1f}" y="{y}"{turned}>{escape(name)}</text>')
    return labels
