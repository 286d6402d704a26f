"""Quantize a checkpoint with several recipes, measure them in llama.cpp, plot size against accuracy, and choose one.

python examples/workflow.py [CHECKPOINT CALIBRATION EVAL_SET OUT]   default: the reference checkpoint and its sets
"""

import math
import sys
from pathlib import Path

import mcpmq
from mcpmq.report.report import ArtifactResult

RECIPES = ("phone-int4", "calibrated-int4", "phone-int8")
LARGEST_KLD = 0.01  # nats per token, upper end of the 95 % interval
DATA = Path(__file__).parent.parent / "calibration"
DEFAULTS = (DATA / "reference", DATA / "starter", DATA / "heldout", Path("build/workflow"))
WIDTH, HEIGHT, MARGIN = 640, 320, 60  # of the plot


def quantize_all(checkpoint: mcpmq.Checkpoint, samples: mcpmq.SampleSet, out: Path) -> list[mcpmq.Artifact]:
    """Return a GGUF artifact of every recipe. A finished step is not repeated, and an interrupted one resumes."""
    artifacts = []
    for name in RECIPES:
        plan = mcpmq.make_plan(checkpoint, mcpmq.Recipe.load(name))
        print(f"{name}: {plan.nbytes / 1e6:.2f} MB of weights", flush=True)
        calibration = samples if plan.recipe.needs_calibration else None
        quantized = mcpmq.quantize(plan, out / name / "quantized", calibration)
        artifacts.append(mcpmq.export(quantized, "gguf", out / name / "gguf"))
    return artifacts


def choose(results: list[ArtifactResult], group: str) -> ArtifactResult | None:
    """Return the smallest artifact whose loss is proved to be small enough, if there is one."""
    small = [one for one in results if one.differences[group].kl_divergence.high <= LARGEST_KLD]
    return min(small, key=lambda one: one.measurement.nbytes, default=None)


def plot(results: list[ArtifactResult], group: str) -> str:
    """Return sizes and mean KL divergences with their intervals as SVG; the vertical axis is logarithmic."""
    sizes = [one.measurement.nbytes / 1e6 for one in results]
    estimates = [one.differences[group].kl_divergence for one in results]
    floor = 1e-9
    lowest = math.log10(max(floor, min(one.low for one in estimates)))
    highest = math.log10(max(floor, *(one.high for one in estimates)))

    def x(size: float) -> float:
        return MARGIN + (size - min(sizes)) / (max(sizes) - min(sizes) or 1) * (WIDTH - 3 * MARGIN)

    def y(nats: float) -> float:
        share = (math.log10(max(floor, nats)) - lowest) / (highest - lowest or 1)
        return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    parts = [f'<text x="{MARGIN}" y="24">mean KLD in nats ({group}) against size in MB</text>']
    for one, size, kld in zip(results, sizes, estimates, strict=True):
        label = f"{one.label}: {size:.2f} MB, {kld.value:.4f}"
        parts += [
            f'<path d="M{x(size):.1f} {y(kld.low):.1f}V{y(kld.high):.1f}" stroke="gray"/>',
            f'<circle cx="{x(size):.1f}" cy="{y(kld.value):.1f}" r="5"><title>{label}</title></circle>',
            f'<text x="{x(size) + 9:.1f}" y="{y(kld.value) + 4:.1f}" font-size="11">{one.recipe}</text>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, *parts, "</svg>"])


def main(checkpoint: Path, calibration: Path, eval_set: Path, out: Path) -> mcpmq.Report:
    """Run the workflow and return the report; report.html and plot.svg are in `out`."""
    original = mcpmq.Checkpoint.open(checkpoint)
    artifacts = quantize_all(original, mcpmq.SampleSet.open(calibration), out)
    report = mcpmq.evaluate(artifacts, original, mcpmq.SampleSet.open(eval_set), out=out)
    for one in report.artifacts:
        for group, difference in one.differences.items():
            kld = difference.kl_divergence
            print(f"{one.label}, {group}: mean KLD {kld.value:.4f} [{kld.low:.4f}, {kld.high:.4f}]")
    group = next(iter(report.original.groups))
    (out / "plot.svg").write_text(plot(list(report.artifacts), group))
    chosen = choose(list(report.artifacts), group)
    print(f"smallest with a mean KLD of at most {LARGEST_KLD}: {chosen.label if chosen else 'none'}")
    return report


if __name__ == "__main__":
    main(*(map(Path, sys.argv[1:]) if len(sys.argv) > 1 else DEFAULTS))
