"""GPTQ: integer codes in 32-bit words, as loaded by transformers (through gptqmodel), vLLM and SGLang.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g), b bits, becomes:

    qweight  int32 [I * b / 32, O]   word r of a column holds inputs r * 32 / b and on, the first in the lowest bits
    qzeros   int32 [G, O * b / 32]   the same along O; checkpoint_format `gptq` stores zero - 1, `gptq_v2` zero itself
    scales   float16 [G, O]
    g_idx    int32 [I]               i // g
    value = (code - zero) * scale

Source: the linear modules of gptqmodel (`nn_modules/qlinear/torch.py`), and of AutoGPTQ before it. A zero of 0 has no
`gptq` form (0 - 1 borrows from its neighbor), so asymmetric grids are written, and declared, as `gptq_v2`.
"""

from collections.abc import Sequence
from typing import Any

from mcpmq.errors import FormatError
from mcpmq.formats.format import FLOAT_SCHEMES, integer_schemes
from mcpmq.formats.hf.constraints import common_scheme
from mcpmq.formats.hf.layout import FLOAT16_SCALES, HfLayout, packed_int32_nbytes
from mcpmq.formats.hf.names import (
    first_inconsistent,
    layers_module,
    module_pattern,
    packed_modules_per_layer,
    unquantized_modules,
)
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme


def quantization_config(model: ModelView) -> dict[str, Any]:
    """Return `quantization_config` of config.json.

    It lists the unquantized modules for every loader: vLLM and gptqmodel read `dynamic`, transformers reads the layer
    list and the modules that each layer packs.
    """
    tensors = model.tensors
    scheme, kept, layers = common_scheme(tensors), unquantized_modules(tensors), layers_module(tensors)
    assert isinstance(scheme, IntegerScheme)
    all_packed = not any(module.startswith(f"{layers}.") for module in kept)
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": False,
        "checkpoint_format": checkpoint_format(scheme),
        "pack_dtype": "int32",
        "lm_head": False,
        "dynamic": {f"-:{module_pattern(module)}": {} for module in kept},
        "block_name_to_quantize": layers,
        "modules_in_block_to_quantize": None if all_packed else [packed_modules_per_layer(tensors)],
        "modules_to_not_convert": list(kept),
        "meta": {"quantizer": [f"mcpmq:{model.artifact.manifest.versions['mcpmq']}"]},
    }


def checkpoint_format(scheme: IntegerScheme) -> str:
    """Return the zero-point convention: `gptq`, which every loader supports, unless a zero point can be 0."""
    return "gptq" if scheme.symmetric else "gptq_v2"


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    assert isinstance(scheme, IntegerScheme)
    groups = scheme.num_groups(columns)
    return {
        "qweight": packed_int32_nbytes(rows, columns, scheme.bits),
        "qzeros": packed_int32_nbytes(groups, rows, scheme.bits),
        "scales": 2 * groups * rows,
        "g_idx": 4 * columns,
    }


def _check_model(tensors: Sequence[TensorPlan]) -> None:
    if tensor := first_inconsistent(tensors):
        raise FormatError(
            f"`gptq` cannot store `{tensor.name}` as `{tensor.scheme or tensor.dtype}`",
            "transformers packs the same modules in every layer: use the scheme that this matrix has in other layers",
        )


LAYOUT = HfLayout(
    components=("language",),  # gptqmodel and vLLM load vision encoders unquantized
    row_multiple=32,  # of the kernels
    column_multiple=32,
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.gptq.packing",
    usage=f"GPTQ layout: transformers (with `optimum` and `gptqmodel`), vLLM and SGLang load it. {FLOAT16_SCALES}",
    legacy_config="quantize_config.json",
)
FORMAT = LAYOUT.declare(
    name="gptq",
    requires=(),
    engine="dequantized",
    min_runtime="transformers 5.23 with optimum and gptqmodel",
    schemes=(
        *integer_schemes((4, 8), (32, 64, 128, None), asymmetric=True),  # in the kernels of vLLM and of gptqmodel
        *FLOAT_SCHEMES,
    ),
    limits="its loaders support integer schemes of some group sizes",
    recipes={4: "calibrated-language-int4", 8: "language-int8"},
    check_model=_check_model,
)
