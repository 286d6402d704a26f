"""Forecast file sizes, memory and time of a conversion from headers; sizes are exact, memory and time estimated."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mcpmq.checkpoint.image_limits import ImageTokens
from mcpmq.dataset import RECOMMENDED_CALIBRATION_TOKENS
from mcpmq.estimate.calibration_time import CalibrationTokens, calibration_seconds
from mcpmq.estimate.resources import (
    DeviceMemory,
    device_memory,
    export_peak_rss_bytes,
    export_seconds,
    num_weights,
    quantize_peak_rss_bytes,
    rounding_seconds,
)
from mcpmq.formats import FormatName, check_plan, format_named
from mcpmq.formats.format import FilesForecast, WeightForecast
from mcpmq.formats.image_tokens import image_tokens
from mcpmq.formats.kv_cache import F16_CACHE, KvCache, cached_per_token, listed_types
from mcpmq.formats.model_view import PlannedModel
from mcpmq.plan import Plan
from mcpmq.system.table import Row, Table, format_megabytes, format_seconds


@dataclass(frozen=True, slots=True)
class ComponentEstimate:
    """The size of one component in a format."""

    component: str
    num_weights: int
    source_nbytes: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales and unquantized tensors."""
        return 8 * self.nbytes / self.num_weights


@dataclass(frozen=True, slots=True)
class FormatEstimate:
    """The forecast of one format; `export_seconds` is None for formats without a recorded run."""

    name: FormatName
    files: FilesForecast
    components: tuple[ComponentEstimate, ...]
    device: DeviceMemory
    export_seconds: float | None
    export_peak_rss_bytes: int
    cache_nbytes: dict[str, int]  # of a full context, by type of llama.cpp's KV cache; empty for other engines

    @property
    def nbytes(self) -> int:
        return self.files.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all components."""
        return 8 * sum(one.nbytes for one in self.components) / sum(one.num_weights for one in self.components)

    @property
    def overridden(self) -> list[WeightForecast]:
        """Weights that the format stores in another type than planned."""
        return [weight for weight in self.files.weights if weight.reason]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a plan; `calibration` has the tokens that the time is for, None without calibration."""

    plan: Plan
    calibration: CalibrationTokens | None
    quantize_seconds: float
    quantize_peak_rss_bytes: int
    formats: tuple[FormatEstimate, ...]
    images: tuple[ImageTokens, ...] = ()  # of typical sizes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the forecast."""
        return {
            "estimated_quantize_seconds": self.quantize_seconds,
            "calibration_tokens": self.calibration.language if self.calibration else 0,
            "estimated_quantize_peak_rss_bytes": self.quantize_peak_rss_bytes,
            "images": [one.model_dump() for one in self.images],
            "formats": {one.name: _format_dict(one) for one in self.formats},
        }

    def to_table(self) -> Table:
        """Return a table with a column for every format."""
        formats = self.formats
        components = dict.fromkeys(part.component for one in formats for part in one.components)
        rows: list[Row] = [
            *((f"{name}, MB", [_component_cell(one, name) for one in formats]) for name in components),
            ("all files, MB", [f"{one.nbytes / 1e6:,.2f}" for one in formats]),
            ("  bits per weight", [f"{one.bits_per_weight:.2f}" for one in formats]),
            ("KV cache, MB", [_megabytes(one.device.kv_cache_nbytes) for one in formats]),
            *_cache_rows(formats),
            ("device peak, concurrent, MB", [_megabytes(one.device.concurrent_nbytes) for one in formats]),
            ("device peak, sequential, MB", [_megabytes(one.device.sequential_nbytes) for one in formats]),
            ("export, peak RSS, MB", [_megabytes(one.export_peak_rss_bytes) for one in formats]),
            ("export, seconds", [_seconds(one.export_seconds) for one in formats]),
        ]
        context = formats[0].device.context if formats else 0
        title = f"forecast of {self.plan.recipe.name}, a context of {context:,} tokens"
        return Table(title, [one.name for one in formats], rows, [*_notes(self)])


def forecast(
    plan: Plan, names: Sequence[FormatName], context: int, calibration: CalibrationTokens | None = None
) -> Forecast:
    """Forecast a plan in these formats with a context of this many tokens; imports no torch.

    `calibration` has the tokens of the calibration set, None for the recommended number.

    Raises:
        FormatError: a format does not support the plan.
        MissingExtra: a package that a format requires is not installed.
    """
    for name in names:
        check_plan(plan, name)
    formats = tuple(_format_estimate(plan, name, context) for name in names)
    seconds, used = rounding_seconds(plan), None
    if plan.recipe.needs_calibration:
        used = calibration or CalibrationTokens.recommended(plan)
        seconds += calibration_seconds(plan, used)
    return Forecast(plan, used, seconds, quantize_peak_rss_bytes(plan), formats, image_tokens(plan.checkpoint))


def _format_estimate(plan: Plan, name: FormatName, context: int) -> FormatEstimate:
    files = format_named(name).forecast(PlannedModel(plan))
    device = device_memory(plan.checkpoint.architecture, files, context)
    seconds, peak = export_seconds(plan, name, files.nbytes), export_peak_rss_bytes(plan, name)
    components = tuple(_component_estimates(plan, files.weights))
    caches = _cache_nbytes(plan, context) if name == "gguf" else {}
    return FormatEstimate(name, files, components, device, seconds, peak, caches)


def _cache_nbytes(plan: Plan, context: int) -> dict[str, int]:
    """Return the bytes of a full context for every listed type that the heads fit."""
    shape = plan.checkpoint.architecture.language
    return {name: context * KvCache(name, name).nbytes(cached_per_token(shape)) for name in listed_types(shape)}


def _cache_rows(formats: Sequence[FormatEstimate]) -> list[Row]:
    """Return the bytes of other types of llama.cpp's KV cache than its default."""
    names = dict.fromkeys(name for one in formats for name in one.cache_nbytes if name != F16_CACHE.keys)
    return [(f"  as {name}, MB", [_cache_cell(one, name) for one in formats]) for name in names]


def _cache_cell(estimate: FormatEstimate, name: str) -> str:
    return _megabytes(estimate.cache_nbytes[name]) if estimate.cache_nbytes else ""


def _component_estimates(plan: Plan, weights: Iterable[WeightForecast]) -> Iterable[ComponentEstimate]:
    nbytes: dict[str, int] = {}
    for weight in weights:
        component = weight.name.partition(".")[0]
        nbytes[component] = nbytes.get(component, 0) + weight.nbytes
    for component, total in nbytes.items():
        tensors = [tensor for tensor in plan.tensors if tensor.spec.component == component]
        source_nbytes = sum(tensor.source_nbytes for tensor in tensors)
        yield ComponentEstimate(component, sum(map(num_weights, tensors)), source_nbytes, total)


def _format_dict(estimate: FormatEstimate) -> dict[str, Any]:
    device = estimate.device
    totals = {"concurrent_nbytes": device.concurrent_nbytes, "sequential_nbytes": device.sequential_nbytes}
    return {
        "nbytes": estimate.nbytes,
        "files": [asdict(file) for file in estimate.files.files],
        "components": [
            {**asdict(part), "bits_per_weight": round(part.bits_per_weight, 4)} for part in estimate.components
        ],
        "device": asdict(device) | totals | {"kv_cache_nbytes_by_type": estimate.cache_nbytes},
        "estimated_export_seconds": estimate.export_seconds,
        "estimated_export_peak_rss_bytes": estimate.export_peak_rss_bytes,
        "weights": [asdict(weight) for weight in estimate.files.weights],
    }


def _component_cell(estimate: FormatEstimate, component: str) -> str:
    [part] = [part for part in estimate.components if part.component == component]
    return f"{_megabytes(part.nbytes)} ({part.bits_per_weight:.2f} bits)"


def _seconds(seconds: float | None) -> str:
    return "no run recorded" if seconds is None else f"{seconds:,.0f}"


def _megabytes(nbytes: int) -> str:
    return format_megabytes(nbytes).removesuffix(" MB")


def _notes(result: Forecast) -> Iterable[str]:
    recipe, peak = result.plan.recipe, format_megabytes(result.quantize_peak_rss_bytes)
    seconds = format_seconds(result.quantize_seconds)
    tokens = f" for {result.calibration.language:,} calibration tokens" if result.calibration else ""
    yield f"quantize: estimated time {seconds}{tokens} on two cores, estimated peak RSS {peak}"
    if result.calibration:
        experts = result.plan.checkpoint.architecture.language.experts
        nbytes = 16 if experts else 4
        if recipe.has_model_targets:  # the original model has states of its own, and recorded ones
            nbytes = 2 * nbytes + 16
        yield f"quantize: calibration samples need additional memory, about {nbytes} bytes x hidden size x their tokens"
    if recipe.compensates_errors:
        yield f"quantize: at least {RECOMMENDED_CALIBRATION_TOKENS:,} calibration tokens are recommended"
    if recipe.has_model_targets:
        yield "quantize: the targets of GPTQ are the outputs of the original model"
    yield from map(str, result.images)
    yield "file sizes are exact; memory is estimated; time is scaled from recorded runs on two cores"
    for estimate in result.formats:
        yield from _override_notes(estimate)


def _override_notes(estimate: FormatEstimate) -> Iterable[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for weight in estimate.overridden:
        groups.setdefault((weight.stored_as, weight.reason), []).append(weight.name)
    for (stored_as, reason), names in groups.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{estimate.name}: `{names[0]}`{others} as {stored_as}: {reason}"
