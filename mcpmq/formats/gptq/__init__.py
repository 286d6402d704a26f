"""GPTQ: integer codes in 32-bit words, as transformers (through gptqmodel), vLLM and SGLang load them.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g), b bits, becomes:

    qweight  int32 [I * b / 32, O]   word r of a column holds inputs r * 32 / b and on, the first in the lowest bits
    qzeros   int32 [G, O * b / 32]   the same along O; checkpoint_format `gptq` stores zero - 1, `gptq_v2` zero itself
    scales   float16 [G, O]
    g_idx    int32 [I]               i // g
    value = (code - zero) * scale

Source: the linear modules of gptqmodel (`nn_modules/qlinear/torch.py`), and of AutoGPTQ before it. A zero of 0 has no
`gptq` form (0 - 1 borrows from its neighbour), so asymmetric grids are written, and declared, as `gptq_v2`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.hf.constraints import grid_of, refusal
from mcpmq.formats.hf.names import as_pattern, list_of_layers, packed_in_layers, wide_modules
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import IntegerScheme, Scheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` are asked without torch
    from mcpmq.quantized_model import Quantized

COMPONENTS = ("language",)  # gptqmodel replaces the layers of the language model, and vLLM leaves towers alone
GROUP_SIZES = (32, 64, 128, None)  # those of vLLM's kernels and gptqmodel's both
MULTIPLE = 32  # of inputs and outputs, which kernels take at a time
GRIDS = "`int4` or `int8` with `-g32`, `-g64`, `-g128` or `-row`, and `-asym` or not,"
OLD_LOADERS = "quantize_config.json"
READERS = (
    "GPTQ layout: transformers (with `optimum` and `gptqmodel`), vLLM and SGLang load it."
    " The scales are float16, some of them negative; a reader that computes in bfloat16 rounds them once more."
)


def refuses(step: Step) -> str | None:
    """Why GPTQ's readers cannot hold this weight on its scheme; None if they can."""
    if (reason := refusal(step, COMPONENTS, _fits, GRIDS)) or not isinstance(step.scheme, IntegerScheme):
        return reason
    rows, columns = step.matrix_shape
    if rows % MULTIPLE or columns % (step.scheme.group_size or MULTIPLE):
        group = step.scheme.group_size or MULTIPLE
        return f"{rows} x {columns} are no whole multiples of {MULTIPLE} x {group}; it can hold `keep`"
    return None


def _fits(scheme: Scheme) -> bool:
    return isinstance(scheme, IntegerScheme) and scheme.group_size in GROUP_SIZES


def settings(steps: Sequence[Step], version: str) -> dict[str, Any]:
    """What config.json says of the format. Which modules stay as they are is said in the words of every reader: vLLM
    and gptqmodel go by `dynamic`, transformers by the list of layers and what in each is packed."""
    scheme, wide, layers = grid_of(steps), wide_modules(steps), list_of_layers(steps)
    assert isinstance(scheme, IntegerScheme)
    whole = not any(module.startswith(f"{layers}.") for module in wide)
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": False,
        "checkpoint_format": checkpoint_format(scheme),
        "pack_dtype": "int32",
        "lm_head": False,
        "dynamic": {f"-:{as_pattern(module)}": {} for module in wide},
        "block_name_to_quantize": layers,
        "modules_in_block_to_quantize": None if whole else [packed_in_layers(steps)],
        "modules_to_not_convert": list(wide),
        "meta": {"quantizer": [f"mcpmq:{version}"]},
    }


def checkpoint_format(scheme: IntegerScheme) -> str:
    """The zero-point convention: what every reader knows where it can be, the one without a hole where it must."""
    return "gptq" if scheme.symmetric else "gptq_v2"


def write(quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write the folder, one weight in memory at a time: component -> names of its files."""
    from mcpmq.formats.gptq.packing import pack
    from mcpmq.formats.hf.writer import Layout, write_json, write_model

    told = settings(quantized.steps, quantized.artifact.manifest.versions["mcpmq"])
    files = write_model(quantized, out, Layout(told, pack, READERS), progress)
    write_json(out / OLD_LOADERS, told)
    return files | {"model": [*files["model"], OLD_LOADERS]}


def forecast(model: Declared) -> LayoutForecast:
    """Every file of the folder."""
    from mcpmq.formats.hf.sizes import json_nbytes, sized

    told = settings(model.steps, model.artifact.manifest.versions["mcpmq"])
    return sized(model, told, _parts, READERS, {OLD_LOADERS: json_nbytes(told)})


def _parts(step: Step) -> dict[str, int]:
    from mcpmq.formats.hf.sizes import words_nbytes

    (rows, columns), scheme = step.matrix_shape, step.scheme
    assert isinstance(scheme, IntegerScheme)
    groups = scheme.groups(columns)
    return {
        "qweight": words_nbytes(rows, columns, scheme.bits),
        "qzeros": words_nbytes(groups, rows, scheme.bits),
        "scales": 2 * groups * rows,
        "g_idx": 4 * columns,
    }
