"""Charts of a report as SVG, with the colors of the page: bars by block, and size against quality."""

from collections.abc import Callable, Collection, Sequence
from html import escape
from math import isfinite, log10, sqrt
from string import ascii_uppercase
from typing import TypeAlias

from mcpmq.evaluate import Estimate
from mcpmq.report.report import BlockInfo, LayerErrors, Report

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 190, 46, 54, 10  # of the drawing and its margins, in SVG units
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
GRID_LINES = 4
SCATTER_WIDTH, SCATTER_HEIGHT, SCATTER_LEFT = 420, 240, 62  # readable on a phone
UNQUANTIZED_BITS = 16
BlockValue: TypeAlias = Callable[[BlockInfo], float | None]


def layer_charts(layers: LayerErrors) -> list[tuple[str, str]]:
    """Return titles and drawings: errors by block, if they are known, and bits by block."""
    blocks = _quantized_blocks(layers.blocks)
    bits = ("Bits per weight", _bar_chart(blocks, lambda block: block.bits_per_weight))
    if layers.error_basis is None:
        return [bits]
    title = "Relative error of outputs" if layers.error_basis == "outputs" else "Relative error of weights"
    return [(title, _bar_chart(blocks, lambda block: block.error)), bits]


def _quantized_blocks(blocks: Sequence[BlockInfo]) -> list[BlockInfo]:
    """Leave out the unquantized norms of a component outside of its layers, e.g. the last norm of a language model."""
    components = {block.name.partition(".")[0] for block in blocks if "." in block.name}
    return [block for block in blocks if block.name not in components or block.bits_per_weight < UNQUANTIZED_BITS]


def size_chart(report: Report) -> str | None:
    """Return size against mean KLD of several artifacts, with intervals and letters; None for fewer than two."""
    group = next(iter(report.original.groups))
    points = [
        (result.measurement.nbytes, result.differences[group].kl_divergence)
        for result in report.artifacts
        if group in result.differences and result.differences[group].kl_divergence.value > 0
    ]
    return scatter_chart(points, [ascii_uppercase[number % 26] for number in range(len(points))])


def scatter_chart(
    points: Sequence[tuple[int, Estimate]],
    labels: Sequence[str],
    fronts: Sequence[Collection[int]] = (),
    axis_title: str = "size of all files",
    unit: str = "nats",
) -> str | None:
    """Return sizes in bytes against losses with intervals; a line connects the points with the indices of a front.

    The scale of the loss is logarithmic: all values are positive. Fewer than two points have no chart.
    """
    if len(points) < 2:
        return None
    sizes, losses = [nbytes / 1e6 for nbytes, _ in points], [loss for _, loss in points]
    x = _scale(min(sizes), max(sizes), SCATTER_LEFT + 30, SCATTER_WIDTH - 40)
    lowest, highest = min(map(_low, losses)), max(map(_high, losses))
    y = _scale(log10(lowest), log10(highest), SCATTER_HEIGHT - BOTTOM, TOP + 10)
    positions = [(x(size), y(log10(loss.value))) for size, loss in zip(sizes, losses, strict=True)]
    marks = [_mark(label, at, loss, y, unit) for label, (at, _), loss in zip(labels, positions, losses, strict=True)]
    ends = dict.fromkeys((lowest, sqrt(lowest * highest), highest))
    axis = [_axis_line(y(log10(value)), f"{value:.2g}", SCATTER_LEFT, SCATTER_WIDTH) for value in ends]
    ticks = [
        f'<text class="component" x="{x(size):.1f}" y="{SCATTER_HEIGHT - 24}">{size:,.1f} MB</text>'
        for size in dict.fromkeys((min(sizes), max(sizes)))
    ]
    title = f'<text class="component" x="{SCATTER_WIDTH / 2}" y="{SCATTER_HEIGHT - 4}">{escape(axis_title)}</text>'
    lines = [_front_line([positions[at] for at in front], number) for number, front in enumerate(fronts) if front]
    return _svg(SCATTER_WIDTH, SCATTER_HEIGHT, [*axis, *ticks, title, *lines, *marks])


def _front_line(positions: Sequence[tuple[float, float]], number: int) -> str:
    """Return the line of a front; that of the second one is dashed."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(positions))
    dashes = ' stroke-dasharray="5 4"' if number else ""
    return f'<polyline class="front" points="{path}"{dashes}/>'


def _low(loss: Estimate) -> float:
    return loss.low if isfinite(loss.low) and loss.low > 0 else loss.value


def _high(loss: Estimate) -> float:
    return loss.high if isfinite(loss.high) else loss.value


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: first + (last - first) * (value - low) / width


def _mark(letter: str, x: float, loss: Estimate, y: Callable[[float], float], unit: str) -> str:
    """Return a point with a letter, and a line from the low to the high end of its interval."""
    top, bottom, middle = (y(log10(value)) for value in (_high(loss), _low(loss), loss.value))
    label = f"<title>{letter}: {loss.value:.4g} {escape(unit)}</title>"
    return (
        f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<circle class="point" cx="{x:.1f}" cy="{middle:.1f}" r="4">{label}</circle>'
        f'<text class="letter" x="{x + 8:.1f}" y="{middle + 4:.1f}">{letter}</text>'
    )


def _axis_line(y: float, label: str, left: int = LEFT, width: int = WIDTH) -> str:
    line = f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="axis" x="{left - 6}" y="{y + 4:.1f}">{label}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _bar_chart(blocks: Sequence[BlockInfo], value: BlockValue) -> str:
    maximum = max(value(block) or 0.0 for block in blocks) or 1.0
    step = (WIDTH - LEFT) / len(blocks)
    bars = [_bar(block, value(block), maximum, LEFT + step * number, step) for number, block in enumerate(blocks)]
    parts = [_grid(maximum), *bars, *_component_labels(blocks, step)]
    return _svg(WIDTH, HEIGHT, parts)


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
        lines.append(_axis_line(y, label))
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
