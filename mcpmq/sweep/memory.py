"""Memory forecasts of the steps of a sweep; they are reserved while a step runs."""

from dataclasses import dataclass

from mcpmq.artifact import FormatName
from mcpmq.dataset import TOKENS_PER_SAMPLE
from mcpmq.estimate.forecast import forecast
from mcpmq.estimate.resources import LIBRARIES_NBYTES
from mcpmq.formats import declared_format
from mcpmq.plan import Plan

STATES_PER_TOKEN, FLOAT_NBYTES = 2, 4  # hidden states before the current block and before the first
LOADED_NBYTES_RATIO = 2  # of a checkpoint in 16 bits that is computed in float32


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Estimated peaks of the processes of a cell in bytes; a step reserves the largest of those that it starts.

    original: the checkpoint in float32; with less memory its blocks are read one by one, so it never exceeds a limit.
    """

    quantize: int = 0
    one_pass: int = 0  # write the format without a quantized model
    export: int = 0
    engine: int = 0  # the process of the engine, beside the process that compares
    original: int = 0


def forecast_memory(plan: Plan, name: FormatName, samples: int, context: int) -> MemoryForecast:
    """Return the forecast of a cell with this number of calibration samples, from headers alone.

    Raises:
        FormatError: the format does not support the plan.
        MissingExtra: a package that the format requires is not installed.
    """
    found = forecast(plan, [name], context)
    [written] = found.formats
    states = samples * TOKENS_PER_SAMPLE * STATES_PER_TOKEN * FLOAT_NBYTES
    passes = 1 + plan.recipe.has_model_targets
    hidden = states * passes * plan.checkpoint.architecture.language.hidden_size
    original = LIBRARIES_NBYTES * 2 + LOADED_NBYTES_RATIO * plan.checkpoint.nbytes
    runs_in_engine = declared_format(name).engine in ("gguf", "onnx")
    engine = LIBRARIES_NBYTES * 2 + written.device.concurrent_nbytes if runs_in_engine else original
    one_pass = max(found.quantize_peak_rss_bytes, written.export_peak_rss_bytes)
    return MemoryForecast(
        found.quantize_peak_rss_bytes + hidden, one_pass, written.export_peak_rss_bytes, engine, original
    )
