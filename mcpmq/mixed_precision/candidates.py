"""Candidate schemes of each weight for the formats that support mixed precision."""

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats import FormatName, format_named
from mcpmq.plan import TensorPlan, scheme_fits
from mcpmq.scheme import GgmlScheme, Scheme, parse_scheme

CANDIDATE_SCHEMES: dict[FormatName, tuple[str, ...]] = {
    "gguf": (
        "q2_k",
        "q3_k",
        "iq3_s",
        "iq4_xs",
        "int4-g32",
        "iq4_nl",
        "q4_k",
        "q5_0",
        "q5_k",
        "q6_k",
        "int8-g32",
        "f16",
    ),
    "onnx": ("int4-g128", "int4-g64", "int4-g32", "int4-g32-asym", "int4-g16", "int8-g128", "int8-g32", "f16"),
}
MIN_BLOCK_COLUMNS = 32  # every scheme pads columns to a multiple of this


def check_mixed_format(name: FormatName, shape: LanguageShape) -> None:
    """Check that a format supports a different scheme for each weight of a model.

    Raises:
        FormatError: the format stores all weights on one scheme, or the matrices of experts are one tensor.
    """
    if shape.experts:
        raise FormatError(
            "a search has a scheme for each weight, and the experts of a layer need one scheme for all",
            "write a recipe with globs, for example `language.layers.*.experts.*`; `mcpmq plan` shows its size",
        )
    if name not in CANDIDATE_SCHEMES:
        raise FormatError(
            f"`{name}` stores all weights on one scheme, which leaves nothing to search",
            f"search a recipe for one of: {', '.join(CANDIDATE_SCHEMES)}",
        )


def candidate_schemes(checkpoint: Checkpoint, spec: TensorSpec, name: FormatName) -> list[Scheme | None]:
    """Return the schemes that a format supports for a weight; the last, None, keeps the dtype."""
    target, dtype, schemes = format_named(name), checkpoint.dtype(spec), []
    for text in CANDIDATE_SCHEMES[name]:
        tensor = TensorPlan(spec, dtype, parse_scheme(text), "")
        if scheme_fits(tensor) and not target.unsupported_reason(tensor) and not _pads_other_weights(tensor):
            schemes.append(tensor.scheme)
    return [*schemes, None]


def _pads_other_weights(tensor: TensorPlan) -> bool:
    """Return whether the scheme's blocks need more padding, which also enlarges the weights of adjacent layers."""
    if not isinstance(tensor.scheme, GgmlScheme) or tensor.spec.paddable_axis != "columns":
        return False
    block = tensor.scheme.block_columns
    return block > MIN_BLOCK_COLUMNS and tensor.matrix_shape[1] % block != 0
