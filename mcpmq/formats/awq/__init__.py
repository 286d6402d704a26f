"""AWQ, the GEMM version: 4-bit codes in 32-bit words along the outputs, as loaded by transformers, vLLM and SGLang.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g), becomes:

    qweight  int32 [I, O / 8]   bits 4i of word c hold output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    qzeros   int32 [G, O / 8]   the same order; the zero itself
    scales   float16 [G, O]
    value = (code - zero) * scale

Source: WQLinear_GEMM of AutoAWQ (`awq/modules/linear/gemm.py`). Symmetric grids have zeros too: 8.
"""

from typing import Any

from mcpmq.formats.format import FLOAT_SCHEMES, integer_schemes
from mcpmq.formats.hf.constraints import common_scheme
from mcpmq.formats.hf.layout import FLOAT16_SCALES, HfLayout, packed_int32_nbytes
from mcpmq.formats.hf.names import unquantized_modules
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme


def quantization_config(model: ModelView) -> dict[str, Any]:
    """Return `quantization_config` of config.json, with the list of unquantized modules."""
    scheme = common_scheme(model.tensors)
    assert isinstance(scheme, IntegerScheme)
    return {
        "quant_method": "awq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(unquantized_modules(model.tensors)),
    }


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    assert isinstance(scheme, IntegerScheme)
    groups = scheme.num_groups(columns)
    return {
        "qweight": packed_int32_nbytes(columns, rows, scheme.bits),
        "qzeros": packed_int32_nbytes(groups, rows, scheme.bits),
        "scales": 2 * groups * rows,
    }


LAYOUT = HfLayout(
    components=("language",),
    row_multiple=32,  # of the kernels
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.awq.packing",
    usage=f"AWQ layout, GEMM version: transformers (with `gptqmodel`), vLLM and SGLang load it. {FLOAT16_SCALES}",
)
FORMAT = LAYOUT.declare(
    name="awq",
    requires=(),
    engine="dequantized",
    min_runtime="transformers 5.23 with gptqmodel",
    schemes=(
        *integer_schemes((4,), (32, 64, 128), asymmetric=True),  # in the kernels of vLLM and of gptqmodel
        *FLOAT_SCHEMES,
    ),
    limits="its loaders support 4-bit integers of some group sizes",
    recipes={4: "calibrated-language-int4"},
)
