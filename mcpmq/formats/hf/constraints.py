"""Constraints on the quantized weights of all Hugging Face formats, checked without torch."""

from collections.abc import Iterable
from typing import TypeGuard

from mcpmq.errors import FormatError
from mcpmq.families.family import TensorSpec
from mcpmq.plan import TensorPlan
from mcpmq.scheme import Scheme


def is_linear(spec: TensorSpec) -> bool:
    """Return True for the weight of a linear module in a transformer layer: loaders replace these by packed modules."""
    in_layer = ".layers." in spec.name
    return spec.role == "matrix" and in_layer and not spec.transposed and spec.hub_name.endswith(".weight")


def check_single_scheme(tensors: Iterable[TensorPlan], name: str, recipes: str) -> None:
    """Check that all quantized tensors share one scheme, and that there is at least one.

    Raises:
        FormatError: no tensor is quantized, or two schemes are mixed.
    """
    packed = [tensor for tensor in tensors if is_packed(tensor.scheme)]
    if not packed:
        raise FormatError(
            f"no weight is quantized, so `{name}` has nothing to store",
            f"give linear layers an integer scheme; {recipes}",
        )
    first = packed[0]
    for tensor in packed:
        if tensor.scheme != first.scheme:
            raise FormatError(
                f"`{name}` cannot store `{tensor.name}` as `{tensor.scheme}`",
                f"its config.json declares one scheme for all weights: use `{first.scheme}`, as `{first.name}` does,"
                f" or `keep`; {recipes}",
            )


def is_packed(scheme: Scheme | None) -> TypeGuard[Scheme]:
    """Return True if the scheme stores codes rather than floats."""
    return scheme is not None and scheme.is_quantized


def common_scheme(tensors: Iterable[TensorPlan]) -> Scheme:
    """Return the scheme that all quantized weights share."""
    [scheme] = {tensor.scheme for tensor in tensors if is_packed(tensor.scheme)}
    return scheme
