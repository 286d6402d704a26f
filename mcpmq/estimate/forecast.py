"""What a conversion will give and take, from headers alone: files, bits, memory here and on the device, time.

Sizes of files are exact; memory and time are expected.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mcpmq.estimate.resources import (
    Device,
    device_of,
    exporting_nbytes,
    exporting_seconds,
    quantizing_nbytes,
    rounding_seconds,
    weights_of,
)
from mcpmq.formats import FormatName, check, format_named
from mcpmq.formats.format import LayoutForecast, WeightForecast
from mcpmq.formats.model_view import Planned
from mcpmq.plan import Plan
from mcpmq.system.table import Row, Table, megabytes


@dataclass(frozen=True, slots=True)
class Part:
    """One component in a format."""

    component: str
    weights: int
    source_nbytes: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Effective, of a weight: codes, scales and whatever stays a float together."""
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True, slots=True)
class Layout:
    """One format's forecast."""

    name: FormatName
    files: LayoutForecast
    parts: tuple[Part, ...]
    device: Device
    seconds: float | None  # to export; None where no run was recorded
    peak_resident_bytes: int

    @property
    def nbytes(self) -> int:
        return self.files.nbytes

    @property
    def forced(self) -> list[WeightForecast]:
        """Weights that the format holds in another way than the plan has them."""
        return [weight for weight in self.files.weights if weight.reason]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect of a plan; `seconds` to quantize is None where no run of such a recipe was recorded."""

    plan: Plan
    seconds: float | None
    peak_resident_bytes: int
    layouts: tuple[Layout, ...]

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "expected_seconds_to_quantize": self.seconds,
            "expected_peak_resident_bytes": self.peak_resident_bytes,
            "formats": {layout.name: _layout_facts(layout) for layout in self.layouts},
        }

    def table(self) -> Table:
        """A column for every format."""
        layouts = self.layouts
        parts: list[Row] = [
            (f"{component}, MB", [_part_cell(layout, component) for layout in layouts])
            for component in dict.fromkeys(part.component for layout in layouts for part in layout.parts)
        ]
        rows: list[Row] = [
            *parts,
            ("all files, MB", [f"{layout.nbytes / 1e6:,.2f}" for layout in layouts]),
            ("  bits a weight", [f"{_bits(layout):.2f}" for layout in layouts]),
            ("cache of the context, MB", [_megabytes(layout.device.cache) for layout in layouts]),
            ("device, all at once, MB", [_megabytes(layout.device.at_once) for layout in layouts]),
            ("device, one after the other, MB", [_megabytes(layout.device.sequential) for layout in layouts]),
            ("export, peak memory, MB", [_megabytes(layout.peak_resident_bytes) for layout in layouts]),
            (
                "export, seconds",
                [_seconds(layout.seconds) for layout in layouts],
            ),
        ]
        context = layouts[0].device.context if layouts else 0
        title = f"expected of {self.plan.recipe.name}, a context of {context:,} tokens"
        return Table(title, [layout.name for layout in layouts], rows, [*_notes(self)])


def forecast(plan: Plan, names: Sequence[FormatName], context: int) -> Forecast:
    """Everything that can be known before a weight is read; needs no torch.

    Raises:
        FormatError: a format cannot hold the plan.
        MissingExtra: what writes a format is not installed.
    """
    for name in names:
        check(plan, name)
    layouts = tuple(_layout(plan, name, context) for name in names)
    return Forecast(plan, rounding_seconds(plan), quantizing_nbytes(plan), layouts)


def _layout(plan: Plan, name: FormatName, context: int) -> Layout:
    files = format_named(name).forecast(Planned(plan))
    device = device_of(plan.checkpoint.architecture, files, context)
    seconds, peak = exporting_seconds(plan, name, files.nbytes), exporting_nbytes(plan, name)
    return Layout(name, files, tuple(_parts(plan, files.weights)), device, seconds, peak)


def _parts(plan: Plan, weights: Iterable[WeightForecast]) -> Iterable[Part]:
    nbytes: dict[str, int] = {}
    for weight in weights:
        component = weight.name.partition(".")[0]
        nbytes[component] = nbytes.get(component, 0) + weight.nbytes
    for component, total in nbytes.items():
        steps = [step for step in plan.steps if step.spec.component == component]
        yield Part(component, sum(map(weights_of, steps)), sum(step.source_nbytes for step in steps), total)


def _layout_facts(layout: Layout) -> dict[str, Any]:
    device = layout.device
    return {
        "nbytes": layout.nbytes,
        "files": [asdict(file) for file in layout.files.files],
        "components": [{**asdict(part), "bits": round(part.bits, 4)} for part in layout.parts],
        "device": asdict(device) | {"at_once": device.at_once, "sequential": device.sequential},
        "expected_seconds_to_export": layout.seconds,
        "expected_peak_resident_bytes": layout.peak_resident_bytes,
        "weights": [asdict(weight) for weight in layout.files.weights],
    }


def _part_cell(layout: Layout, component: str) -> str:
    [part] = [part for part in layout.parts if part.component == component]
    return f"{_megabytes(part.nbytes)} ({part.bits:.2f} bits)"


def _seconds(seconds: float | None) -> str:
    return "no run recorded" if seconds is None else f"{seconds:,.0f}"


def _bits(layout: Layout) -> float:
    return 8 * sum(part.nbytes for part in layout.parts) / sum(part.weights for part in layout.parts)


def _megabytes(nbytes: int) -> str:
    return megabytes(nbytes).removesuffix(" MB")


def _notes(made: Forecast) -> Iterable[str]:
    peak = megabytes(made.peak_resident_bytes)
    yield f"quantizing: expected seconds {_seconds(made.seconds)}, expected peak memory {peak}"
    if made.seconds is None:
        yield "quantizing: the calibration samples come on top, about 4 bytes x width of the model x their tokens"
    yield "sizes of files are exact; memory is reckoned, and time is that of recorded runs on two cores"
    for layout in made.layouts:
        yield from _forced_notes(layout)


def _forced_notes(layout: Layout) -> Iterable[str]:
    told: dict[tuple[str, str], list[str]] = {}
    for weight in layout.forced:
        told.setdefault((weight.stored_as, weight.reason), []).append(weight.name)
    for (stored_as, reason), names in told.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{layout.name}: `{names[0]}`{others} as {stored_as}: {reason}"
