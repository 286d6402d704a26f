"""AWQ, the GEMM version: 4-bit codes in 32-bit words along the outputs, as transformers, vLLM and SGLang load them.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g), becomes:

    qweight  int32 [I, O / 8]   bits 4i of word c hold output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    qzeros   int32 [G, O / 8]   the same order; the zero itself
    scales   float16 [G, O]
    value = (code - zero) * scale

Source: WQLinear_GEMM of AutoAWQ (`awq/modules/linear/gemm.py`). There is always a zero: 8 where the grid is symmetric.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.hf.constraints import grid_of, refusal
from mcpmq.formats.hf.names import wide_modules
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import IntegerScheme, Scheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` are asked without torch
    from mcpmq.quantized_model import Quantized

COMPONENTS = ("language",)
GROUP_SIZES = (32, 64, 128)  # those of vLLM's kernels and gptqmodel's both
MULTIPLE = 32  # of outputs, which kernels take at a time
GRIDS = "`int4-g32`, `int4-g64` or `int4-g128`, and `-asym` or not,"
READERS = (
    "AWQ layout, GEMM version: transformers (with `gptqmodel`), vLLM and SGLang load it."
    " The scales are float16, some of them negative; a reader that computes in bfloat16 rounds them once more."
)


def refuses(step: Step) -> str | None:
    """Why AWQ's readers cannot hold this weight on its scheme; None if they can."""
    if (reason := refusal(step, COMPONENTS, _fits, GRIDS)) or not isinstance(step.scheme, IntegerScheme):
        return reason
    (rows, columns), group = step.matrix_shape, step.scheme.group_size
    if rows % MULTIPLE or columns % (group or 1):
        return f"{rows} x {columns} are no whole multiples of {MULTIPLE} x {group}; it can hold `keep`"
    return None


def _fits(scheme: Scheme) -> bool:
    return isinstance(scheme, IntegerScheme) and scheme.bits == 4 and scheme.group_size in GROUP_SIZES


def settings(steps: Sequence[Step]) -> dict[str, Any]:
    """What config.json says of the format, and which modules stay as they are."""
    scheme, wide = grid_of(steps), wide_modules(steps)
    assert isinstance(scheme, IntegerScheme)
    return {
        "quant_method": "awq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(wide),
    }


def write(quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write the folder, one weight in memory at a time: component -> names of its files."""
    from mcpmq.formats.awq.packing import pack
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
    groups = scheme.groups(columns)
    return {
        "qweight": words_nbytes(columns, rows, scheme.bits),
        "qzeros": words_nbytes(groups, rows, scheme.bits),
        "scales": 2 * groups * rows,
    }
