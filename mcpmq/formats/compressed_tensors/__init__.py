"""compressed-tensors: vLLM's own layouts, which transformers loads with one small package.

`pack-quantized`, for weights alone:

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g; 1 for one scale per row), b bits:

    weight_packed  int32 [O, ceil(I * b / 32)]   along I, the first code in the lowest bits; signed code + 2^(b - 1)
    weight_scale   float16 [O, G]
    weight_shape   int64 [2]                     O, I
    value = signed code * scale

`int-quantized`, if the inputs of all quantized matrices are int8 too, with a scale for each token (W8A8):

    weight         int8 [O, I]                   signed code
    weight_scale   float16 [O, 1]

The engine rounds inputs (`TokenGrid`). Source: `compressors/pack_quantized` and `compressors/naive_quantized` of
compressed-tensors. Zero points are not supported: the loader of transformers
allocates them unpacked, but the files contain them packed.
"""

from collections.abc import Sequence
from typing import Any

from mcpmq.errors import FormatError
from mcpmq.formats.format import FLOAT_SCHEMES, integer_schemes
from mcpmq.formats.hf.constraints import common_scheme, is_packed
from mcpmq.formats.hf.layout import FLOAT16_SCALES, HfLayout, has_activations, packed_int32_nbytes
from mcpmq.formats.hf.names import module_pattern, unquantized_modules
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.recipe import TOKENS
from mcpmq.scheme import IntegerScheme

INT8_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def quantization_config(model: ModelView) -> dict[str, Any]:
    """Return `quantization_config` of config.json, with the list of unquantized modules."""
    scheme = common_scheme(model.tensors)
    assert isinstance(scheme, IntegerScheme)
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs = INT8_TOKENS if has_activations(model) else None
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if inputs else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [f"re:{module_pattern(module)}" for module in unquantized_modules(model.tensors)],
        "kv_cache_scheme": None,
    }


def _int8_nbytes(tensor: TensorPlan) -> dict[str, int]:
    rows, columns = tensor.matrix_shape
    return {"weight": rows * columns, "weight_scale": 2 * rows}


def check_activations(tensors: Sequence[TensorPlan]) -> None:
    """Check that the inputs of all quantized weights are quantized, or of none.

    Raises:
        FormatError: config.json has one group of weights, which all have the same inputs.
    """
    packed = [tensor for tensor in tensors if is_packed(tensor.scheme)]
    missing = [tensor.name for tensor in packed if not tensor.activation]
    if 0 < len(missing) < len(packed):
        raise FormatError(
            f"`compressed-tensors` has one group of weights: `{missing[0]}` and {len(missing) - 1} more have no"
            " [activations], others have",
            "give [activations] the globs of [weights]",
        )


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    assert isinstance(scheme, IntegerScheme)
    return {
        "weight_packed": packed_int32_nbytes(rows, columns, scheme.bits),
        "weight_scale": 2 * rows * scheme.num_groups(columns),
        "weight_shape": 2 * 8,
    }


INT8_LAYOUT = HfLayout(
    components=("language", "vision", "audio"),
    quantization_config=quantization_config,
    packed_nbytes=_int8_nbytes,
    packing="mcpmq.formats.compressed_tensors.int_quantized",
    usage=f"`int-quantized` layout, int8 inputs: transformers (`compressed-tensors`), vLLM load it. {FLOAT16_SCALES}",
)
LAYOUT = HfLayout(
    components=("language", "vision", "audio"),
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.compressed_tensors.packing",
    usage=f"`pack-quantized` layout: transformers (`compressed-tensors`), vLLM and SGLang load it. {FLOAT16_SCALES}",
    with_activations=INT8_LAYOUT,
)
FORMAT = LAYOUT.declare(
    name="compressed-tensors",
    requires=("compressed_tensors", "accelerate"),
    engine="transformers",
    min_runtime="transformers 5.23 with compressed-tensors and accelerate",
    schemes=(*integer_schemes((4, 8), (16, 32, 64, 128, 256, None)), *FLOAT_SCHEMES),
    activations=(TOKENS,),
    check_model=check_activations,
    limits="its loaders support symmetric integer schemes",
    recipes={4: "calibrated-language-int4", 8: "language-int8"},
)
