"""bitsandbytes: NF4 and FP4 with double quantization, and LLM.int8, as loaded by transformers.

A linear module of O outputs and I inputs, n = O * I, becomes in 4 bits (the layout of MiniCPM-V-2_6-int4):

    weight                    uint8 [n / 2, 1]         two codes a byte, the first in the high half, row after row
    weight.absmax             uint8 [n / 64]           the scale of 64 weights, a code itself
    weight.quant_map          float32 [16]             the value of every code
    weight.nested_absmax      float32 [n / 64 / 256]   the scale of 256 scales
    weight.nested_quant_map   float32 [256]            the value of every code of a scale
    weight.quant_state.bitsandbytes__nf4   uint8       JSON: shape, dtype, block sizes, offset of all scales
    value = quant_map[code] * (nested_quant_map[absmax] * nested_absmax + nested_offset)

and in 8 bits:

    weight int8 [O, I], SCB float32 [O], weight_format uint8 [] = 0 (row-major);  value = code * SCB / 127

Source: `QuantState` and `Linear8bitLt` of bitsandbytes; arXiv 2305.14314 and arXiv 2208.07339.
"""

from typing import Any

from mcpmq.formats.format import FLOAT_SCHEMES
from mcpmq.formats.hf.constraints import common_scheme
from mcpmq.formats.hf.layout import HfLayout
from mcpmq.formats.hf.names import unquantized_modules
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import CODEBOOK_GROUP_SIZE, CodebookScheme

NESTED_BLOCK_SIZE = 256  # scales that share a scale
QUANT_STATE_NBYTES = 162  # approximate: the number of digits of the offset depends on the values


def quantization_config(model: ModelView) -> dict[str, Any]:
    """Return `quantization_config` of config.json, with the list of unquantized modules and the compute dtype."""
    scheme = common_scheme(model.tensors)
    is_4bit = isinstance(scheme, CodebookScheme)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": is_4bit,
        "load_in_8bit": not is_4bit,
        "_load_in_4bit": is_4bit,
        "_load_in_8bit": not is_4bit,
        "bnb_4bit_quant_type": scheme.name if isinstance(scheme, CodebookScheme) else "nf4",
        "bnb_4bit_use_double_quant": is_4bit,
        "bnb_4bit_compute_dtype": next(tensor.dtype for tensor in model.tensors if tensor.scheme == scheme),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(unquantized_modules(model.tensors)),
        "llm_int8_threshold": 6.0,
    }


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    if not isinstance(scheme, CodebookScheme):
        return {"weight": rows * columns, "SCB": 4 * rows, "weight_format": 1}
    blocks = rows * columns // CODEBOOK_GROUP_SIZE
    return {
        "weight": rows * columns // 2,
        "weight.absmax": blocks,
        "weight.quant_map": 4 * 16,
        "weight.nested_absmax": 4 * -(-blocks // NESTED_BLOCK_SIZE),
        "weight.nested_quant_map": 4 * 256,
        f"weight.quant_state.bitsandbytes__{scheme.name}": QUANT_STATE_NBYTES,
    }


LAYOUT = HfLayout(
    components=("language", "vision", "audio"),
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.bnb.packing",
    usage=(
        "bitsandbytes layout: transformers (with `bitsandbytes` and `accelerate`) loads it. In 8 bits it rounds the"
        " inputs of every layer too, except values above `llm_int8_threshold`."
    ),
)
FORMAT = LAYOUT.declare(
    name="bnb",
    requires=("bitsandbytes", "accelerate"),
    engine="transformers",
    min_runtime="transformers 5.23 with bitsandbytes and accelerate",
    schemes=("nf4", "fp4", "int8-row", *FLOAT_SCHEMES),
    limits="bitsandbytes has two 4-bit codebooks, and 8-bit integers with one scale per row",
    recipes={4: "language-nf4", 8: "language-int8"},
)
