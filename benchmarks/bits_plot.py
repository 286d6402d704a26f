"""The plots of benchmarks/README.md: bits per weight against mean KLD on pretrained weights, as SVG.

python -m benchmarks.bits_plot   writes docs/images/bits-*.svg from benchmarks/results/real-weights.json
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.real_weights import results
from benchmarks.real_weights.variants import NUM_LAYERS
from benchmarks.svg import THEMES, Frame, Theme, text
from mcpmq.evaluate import Estimate

IMAGES = ROOT / "docs" / "images"
FRAME = Frame(width=760, height=440, left=74, right=24, top=20, bottom=54, values=(2.0, 9.0), decades=(-5, 1))
TICKS = range(2, 10)
AXES = "bits per quantized weight", "mean KLD, nats"
OURS, IMATRIX, TRELLIS = "mcpmq, GPTQ", "llama-quantize, imatrix", "ik_llama.cpp, imatrix"
TOOLS = {
    ("mcpmq", "gptq"): OURS,
    ("mcpmq", "rtn"): "round to nearest",
    ("llama-quantize", "imatrix"): IMATRIX,
    ("ik-llama", "imatrix"): TRELLIS,
    ("gptqmodel", "gptq"): "GPTQModel",
    ("gptqmodel", "gptq-act-group-aware"): "GPTQModel",
    ("gptqmodel", "gptq-mse"): "GPTQModel",
    ("gptqmodel", "gptq-desc-act"): "GPTQModel",
    ("llmcompressor", "gptq"): "llm-compressor, AutoRound",
    ("autoround", "200-steps"): "llm-compressor, AutoRound",
}
# In the order of the colors.
SERIES = (OURS, IMATRIX, "GPTQModel", "llm-compressor, AutoRound", "round to nearest", TRELLIS)
LINES = (OURS, IMATRIX, TRELLIS)
LEGEND_LINE = 20  # height, in SVG units


@dataclass(frozen=True, slots=True)
class Point:
    """One artifact."""

    series: str
    scheme: str
    bits: float
    divergence: Estimate


def smollm2_points(result: Mapping[str, Any]) -> list[Point]:
    """Return all variants in llama.cpp with the usual calibration and some layers, on the samples that all have."""
    rows = [row for row in result["rows"] if row["layers"] < NUM_LAYERS and not row["requested_commit"]]
    rows = [row for row in rows if row["format"] == "gguf" and row["smooth"] == "none"]
    usual = max((row["calibration_tokens"] for row in rows if row["tool"] != "mcpmq"), default=0)
    rows = [row for row in rows if row["calibration_tokens"] in (0, usual)]
    samples = min((len(row[results.BY_SAMPLE]) for row in rows), default=0)
    tokens = result["test"]["tokens_by_sample"] if rows else []
    return [
        Point(series, row["scheme"], row["bits_per_weight"], results.mean(row, tokens, samples))
        for row in rows
        if (series := TOOLS.get((row["tool"], row["method"])))
    ]


def whisper_points(result: Mapping[str, Any]) -> list[Point]:
    """Return all variants of the present sources with the usual calibration."""
    series = {"gptq": OURS, "llama-quantize": IMATRIX, "rtn": "round to nearest"}
    usual = result["whisper"][0]["calibration_tokens"] if result["whisper"] else 0
    return [
        Point(
            series[row["method"]], row["scheme"], row["bits_per_weight"], Estimate.model_validate(row["kl_divergence"])
        )
        for row in result["whisper"]
        if not row["requested_commit"] and row["calibration_tokens"] in (0, usual)
    ]


def draw(title: str, points: Sequence[Point], theme: Theme) -> str:
    """Return the drawing of some points."""
    colors = dict(zip(SERIES, (theme.searched, *theme.others), strict=True))
    present = [name for name in SERIES if any(point.series == name for point in points)]
    parts = FRAME.axes(theme, TICKS, AXES)
    parts += [FRAME.line(best_points(points, name), colors[name]) for name in LINES if name in present]
    parts += [FRAME.marker(point.bits, point.divergence, colors[point.series]) for point in points]
    parts += [_label(point, theme) for point in points if point.series in (OURS, TRELLIS)]
    return FRAME.drawing(title, [*parts, *_legend(present, colors, theme)])


def best_points(points: Iterable[Point], series: str) -> list[tuple[float, float]]:
    """Return bits and divergence of the best scheme of every size, by size."""
    best: dict[float, float] = {}
    for point in points:
        if point.series == series:
            bits = round(point.bits, 2)
            best[bits] = min(best.get(bits, point.divergence.value), point.divergence.value)
    return sorted(best.items())


def _label(point: Point, theme: Theme) -> str:
    x, y = FRAME.x(point.bits), FRAME.y(point.divergence.value)
    return text(x - 8, y + 16, point.scheme, theme.fixed, "end")


def _legend(names: Sequence[str], colors: Mapping[str, str], theme: Theme) -> list[str]:
    right = FRAME.width - FRAME.right - 190
    parts = []
    for number, name in enumerate(names):
        y = FRAME.top + LEGEND_LINE * (number + 1)
        parts += [f'<circle cx="{right}" cy="{y - 4}" r="4.5" fill="{colors[name]}"/>']
        parts += [text(right + 12, y, name, theme.text, "start")]
    return parts


def panels(result: Mapping[str, Any]) -> dict[str, tuple[str, list[Point]]]:
    """Return title and points of every drawing with points, by name."""
    found = {
        "bits-smollm2": ("SmolLM2 in llama.cpp: bits per weight and mean KLD", smollm2_points(result)),
        "bits-whisper": ("The decoder of Whisper: bits per weight and mean KLD", whisper_points(result)),
    }
    return {name: panel for name, panel in found.items() if panel[1]}


def drawings(result: Mapping[str, Any]) -> dict[str, str]:
    """Return all drawings by file name."""
    return {
        f"{name}-{kind}.svg": draw(title, points, theme)
        for name, (title, points) in panels(result).items()
        for kind, theme in THEMES.items()
    }


def images() -> str:
    """Return the drawings of the committed result for a page in this folder."""
    found = panels(results.load()).items()
    return "\n\n".join(f"![{title}](../docs/images/{name}-light.svg)" for name, (title, _) in found)


def main() -> None:
    """Write all drawings."""
    IMAGES.mkdir(exist_ok=True)
    for name, drawing in drawings(results.load()).items():
        (IMAGES / name).write_text(drawing)


if __name__ == "__main__":
    main()
