"""compressed-tensors, `pack-quantized`: vLLM's own layout, which transformers loads with one small package.

A linear module of O outputs and I inputs, in groups of g inputs (G = I / g; 1 for one scale per row), b bits:

    weight_packed  int32 [O, ceil(I * b / 32)]   along I, the first code in the lowest bits; signed code + 2^(b - 1)
    weight_scale   float16 [O, G]
    weight_shape   int64 [2]                     O, I
    value = signed code * scale

Source: `compressors/pack_quantized` of compressed-tensors. Zero points are not supported: the loader of transformers
allocates them unpacked, but the files contain them packed.
"""

from typing import Any

from mcpmq.formats.format import FLOAT_SCHEMES, integer_schemes
from mcpmq.formats.hf.constraints import common_scheme
from mcpmq.formats.hf.layout import FLOAT16_SCALES, HfLayout, packed_int32_nbytes
from mcpmq.formats.hf.names import module_pattern, unquantized_modules
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme


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
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [f"re:{module_pattern(module)}" for module in unquantized_modules(model.tensors)],
        "kv_cache_scheme": None,
    }


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    assert isinstance(scheme, IntegerScheme)
    return {
        "weight_packed": packed_int32_nbytes(rows, columns, scheme.bits),
        "weight_scale": 2 * rows * scheme.num_groups(columns),
        "weight_shape": 2 * 8,
    }


LAYOUT = HfLayout(
    components=("language", "vision", "audio"),
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.compressed_tensors.packing",
    usage=f"`pack-quantized` layout: transformers (`compressed-tensors`), vLLM and SGLang load it. {FLOAT16_SCALES}",
)
FORMAT = LAYOUT.declare(
    name="compressed-tensors",
    requires=("compressed_tensors", "accelerate"),
    engine="transformers",
    min_runtime="transformers 5.23 with compressed-tensors and accelerate",
    schemes=(*integer_schemes((4, 8), (16, 32, 64, 128, 256, None)), *FLOAT_SCHEMES),
    limits="its loaders support symmetric integer schemes",
    recipes={4: "calibrated-language-int4", 8: "language-int8"},
)
