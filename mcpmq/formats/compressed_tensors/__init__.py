"""compressed-tensors, `pack-quantized`: vLLM's own layout, which transformers loads with one small package.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g; 1 where a row shares its scale), b bits:

    weight_packed  int32 [O, ceil(I * b / 32)]   along I, the first code in the lowest bits; signed code + 2^(b - 1)
    weight_scale   float16 [O, G]
    weight_shape   int64 [2]                     O, I
    value = signed code * scale

Source: `compressors/pack_quantized` of compressed-tensors. Zero points are refused: the loader of transformers
makes room for them unpacked, and then finds them packed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.hf.constraints import grid_of, refusal
from mcpmq.formats.hf.names import as_pattern, wide_modules
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import IntegerScheme, Scheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` are asked without torch
    from mcpmq.quantized_model import Quantized

COMPONENTS = ("language", "vision")
GRIDS = "`int4` or `int8`, symmetric, with groups that divide its inputs or `-row`,"
READERS = (
    "`pack-quantized` layout: transformers (with `compressed-tensors`), vLLM and SGLang load it."
    " The scales are float16, some of them negative; a reader that computes in bfloat16 rounds them once more."
)


def refuses(step: Step) -> str | None:
    """Why readers of compressed-tensors cannot hold this weight on its scheme; None if they can."""
    if (reason := refusal(step, COMPONENTS, _fits, GRIDS)) or not isinstance(step.scheme, IntegerScheme):
        return reason
    columns = step.matrix_shape[1]
    if step.scheme.group_size and columns % step.scheme.group_size:
        return f"{columns} columns are no whole groups of {step.scheme.group_size}; it can hold {GRIDS} or `keep`"
    return None


def _fits(scheme: Scheme) -> bool:
    return isinstance(scheme, IntegerScheme) and scheme.symmetric


def settings(steps: Sequence[Step]) -> dict[str, Any]:
    """What config.json says of the format, and which modules stay as they are."""
    scheme, wide = grid_of(steps), wide_modules(steps)
    assert isinstance(scheme, IntegerScheme)
    grid = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": grid, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [f"re:{as_pattern(module)}" for module in wide],
        "kv_cache_scheme": None,
    }


def write(quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write the folder, one weight in memory at a time: component -> names of its files."""
    from mcpmq.formats.compressed_tensors.packing import pack
    from mcpmq.formats.hf.writer import Layout, write_model

    return write_model(quantized, out, Layout(settings(quantized.steps), pack, READERS), progress)


def forecast(model: Declared) -> LayoutForecast:
    """Every file of the folder."""
    from mcpmq.formats.hf.sizes import sized

    return sized(model, settings(model.steps), _parts, READERS)


def _parts(step: Step) -> dict[str, int]:
    from mcpmq.formats.hf.sizes import words_nbytes

    (rows, columns), scheme = step.matrix_shape, step.scheme
    assert isinstance(scheme, IntegerScheme)
    return {
        "weight_packed": words_nbytes(rows, columns, scheme.bits),
        "weight_scale": 2 * rows * scheme.groups(columns),
        "weight_shape": 2 * 8,
    }
