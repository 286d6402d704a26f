"""bitsandbytes: NF4 and FP4 with double quantization, and LLM.int8, as transformers loads them.

A linear module of O outputs and I inputs, n = O * I, becomes in 4 bits (the layout of MiniCPM-V-2_6-int4):

    weight                    uint8 [n / 2, 1]         two codes a byte, the first in the high half, row after row
    weight.absmax             uint8 [n / 64]           the scale of 64 weights, a code itself
    weight.quant_map          float32 [16]             the value of every code
    weight.nested_absmax      float32 [n / 64 / 256]   the scale of 256 scales
    weight.nested_quant_map   float32 [256]            the value of every code of a scale
    weight.quant_state.bitsandbytes__nf4   uint8       JSON: shape, dtype, block sizes, and what is added to all scales
    value = quant_map[code] * (nested_quant_map[absmax] * nested_absmax + nested_offset)

and in 8 bits:

    weight int8 [O, I], SCB float32 [O], weight_format uint8 [] = 0 (row-major);  value = code * SCB / 127

Source: `QuantState` and `Linear8bitLt` of bitsandbytes; arXiv 2305.14314 and arXiv 2208.07339.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.hf.constraints import grid_of, refusal
from mcpmq.formats.hf.names import wide_modules
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import CODEBOOK_COLUMNS, CodebookScheme, IntegerScheme, Scheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` are asked without torch
    from mcpmq.quantized_model import Quantized

COMPONENTS = ("language", "vision")
INT8 = IntegerScheme(8, None)
SCALE_BLOCK = 256  # scales that share a scale
STATE_NBYTES = 162  # about
GRIDS = "`nf4`, `fp4`, `int8-row`"
READERS = (
    "bitsandbytes layout: transformers (with `bitsandbytes` and `accelerate`) loads it. In 8 bits it rounds what every"
    " layer gets to 8 bits too, but for values above `llm_int8_threshold`."
)


def refuses(step: Step) -> str | None:
    """Why bitsandbytes cannot hold this weight on its scheme; None if it can."""
    return refusal(step, COMPONENTS, _fits, GRIDS)


def _fits(scheme: Scheme) -> bool:
    return isinstance(scheme, CodebookScheme) or scheme == INT8


def settings(steps: Sequence[Step]) -> dict[str, Any]:
    """What config.json says of the format, which modules stay as they are, and what is computed in."""
    scheme, wide = grid_of(steps), wide_modules(steps)
    dtype = next(step.dtype for step in steps if step.scheme == scheme)
    four = isinstance(scheme, CodebookScheme)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_quant_type": scheme.name if isinstance(scheme, CodebookScheme) else "nf4",
        "bnb_4bit_use_double_quant": four,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(wide),
        "llm_int8_threshold": 6.0,
    }


def write(quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write the folder, one weight in memory at a time: component -> names of its files."""
    from mcpmq.formats.bnb.packing import pack
    from mcpmq.formats.hf.writer import Layout, write_model

    return write_model(quantized, out, Layout(settings(quantized.steps), pack, READERS), progress)


def forecast(model: Declared) -> LayoutForecast:
    """Every file of the folder; how many digits what is added to all scales of a weight has, only its values tell."""
    from mcpmq.formats.hf.sizes import sized

    return sized(model, settings(model.steps), _parts, READERS)


def _parts(step: Step) -> dict[str, int]:
    (rows, columns), scheme = step.matrix_shape, step.scheme
    if not isinstance(scheme, CodebookScheme):
        return {"weight": rows * columns, "SCB": 4 * rows, "weight_format": 1}
    blocks = rows * columns // CODEBOOK_COLUMNS
    return {
        "weight": rows * columns // 2,
        "weight.absmax": blocks,
        "weight.quant_map": 4 * 16,
        "weight.nested_absmax": 4 * -(-blocks // SCALE_BLOCK),
        "weight.nested_quant_map": 4 * 256,
        f"weight.quant_state.bitsandbytes__{scheme.name}": STATE_NBYTES,
    }
