"""MLX: affine quantization in groups, as loaded by mlx-vlm on Apple devices.

A linear module or embedding of O outputs and I inputs, in groups of g inputs (G = I / g), b bits, becomes:

    weight   uint32 [O, I * b / 32]   the first code in the lowest bits
    scales   float16 [O, G]
    biases   float16 [O, G]
    value = code * scale + bias

Symmetric integers have the bias -2^(b - 1) * scale, `q4_1` its minimum: float16 represents both exactly. Zero points of
asymmetric integers have no exact bias. `quantization` in config.json has bits and group size, and those of modules with
others. Names and layouts of tensors are those of mlx-vlm.

Source: `quantize` of mlx.core, `nn.QuantizedLinear` of mlx.nn, `load_model` and `sanitize` of mlx-vlm.
"""

from collections.abc import Sequence
from typing import Any

from mcpmq.errors import FormatError
from mcpmq.formats.format import FLOAT_SCHEMES, integer_schemes
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.layout import HfLayout, packed_int32_nbytes
from mcpmq.formats.hf.names import module_name
from mcpmq.formats.mlx.config import mlx_config
from mcpmq.formats.mlx.modes import GGML_BITS, GROUP_SIZES, bits_of, common_scheme, group_size_of, mode_of
from mcpmq.formats.mlx.names import PREFIXES, from_mlx, mlx_name, to_mlx
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan

MODULE_MULTIPLE = 64  # of the weights of a module that mlx-vlm quantizes


def quantization_config(model: ModelView) -> dict[str, Any]:
    """Return `quantization` of config.json: the mode of most modules, and that of each module with another one."""
    default, family = common_scheme(model.tensors), model.artifact.manifest.family
    others = {
        mlx_name(family, module_name(tensor.spec.hub_name) + ".").removesuffix("."): mode_of(tensor.scheme)
        for tensor in model.tensors
        if is_packed(tensor.scheme) and mode_of(tensor.scheme) != mode_of(default)
    }
    return mode_of(default) | others


def _packed_nbytes(tensor: TensorPlan) -> dict[str, int]:
    (rows, columns), scheme = tensor.matrix_shape, tensor.scheme
    assert scheme is not None
    halves = 2 * rows * (columns // group_size_of(scheme))
    words = packed_int32_nbytes(rows, columns, bits_of(scheme))
    return {"weight": words, "scales": halves, "biases": halves}


def _shape_limit(tensor: TensorPlan) -> str | None:
    """Return why MLX cannot store a quantized tensor of this role and shape; None if it can."""
    if not is_packed(tensor.scheme):
        return None
    if tensor.spec.transposed or not tensor.spec.hub_name.endswith(".weight"):
        return "only weights of linear layers and embeddings can be quantized in this format; use `keep`"
    (rows, columns), multiple = tensor.matrix_shape, group_size_of(tensor.scheme)
    if columns % multiple or rows * columns % MODULE_MULTIPLE:
        return f"{rows} x {columns} has no whole groups of {multiple} columns; use `keep`"
    return None


def _check_model(tensors: Sequence[TensorPlan]) -> None:
    if not any(is_packed(tensor.scheme) for tensor in tensors):
        raise FormatError("no weight is quantized, so `mlx` has nothing to store", "give the language model a scheme")


LAYOUT = HfLayout(
    components=("language", "vision", "projector", "embedding", "head"),
    quantization_config=quantization_config,
    packed_nbytes=_packed_nbytes,
    packing="mcpmq.formats.mlx.packing",
    usage=(
        "MLX layout: `python -m mlx_vlm.generate --model FOLDER --image FILE --prompt TEXT` loads it on Apple devices."
        " Scales and biases are float16; MLX computes in float32 where they meet bfloat16."
    ),
    method="mlx",
    library="mlx",
    config=mlx_config,
    config_keys=("quantization", "quantization_config"),
    stored_name=mlx_name,
    to_stored=to_mlx,
    from_stored=from_mlx,
)
FORMAT = LAYOUT.declare(
    name="mlx",
    requires=(),
    engine="dequantized",
    min_runtime="mlx-vlm 0.7",
    schemes=(*integer_schemes((4, 8), GROUP_SIZES), *GGML_BITS, *FLOAT_SCHEMES),
    limits="MLX has affine groups of 32, 64 or 128 columns with float16 scales and biases",
    recipes={4: "calibrated-mlx-int4", 8: "mlx-int8"},
    families=tuple(PREFIXES),
    single_scheme=False,
    shape_limit=_shape_limit,
    check_model=_check_model,
)
