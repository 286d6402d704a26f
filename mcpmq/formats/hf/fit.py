"""What readers of Hugging Face artifacts can hold, whatever the format: decided without torch."""

from collections.abc import Iterable

from mcpmq.families.family import TensorSpec
from mcpmq.plan import Step
from mcpmq.recipe import FloatScheme, GgmlScheme, Scheme

FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def is_linear(spec: TensorSpec) -> bool:
    """Whether a weight is that of a linear module of a transformer layer: what readers replace by a packed one."""
    in_layer = ".layers." in spec.name
    return spec.role == "matrix" and in_layer and not spec.transposed and spec.hub_name.endswith(".weight")


def place_refusal(step: Step, components: tuple[str, ...], grids: str) -> str | None:
    """Why readers that replace the linear layers of these components cannot hold a weight here; None if they can.

    `grids` names what a linear layer may have.
    """
    scheme = step.scheme
    if scheme is None or isinstance(scheme, FloatScheme):
        same = scheme is None or FLOATS[scheme.dtype] == step.dtype
        return None if same else f"config.json names one type of floats for all, {step.dtype}; it can hold `keep`"
    if step.spec.component not in components or not is_linear(step.spec):
        return f"its readers pack the linear layers of {' and '.join(components)} alone; it can hold `keep`"
    if isinstance(scheme, GgmlScheme):
        return f"ggml's blocks are a layout of their own; it can hold {grids} or `keep`"
    return None


def is_packed(scheme: Scheme | None) -> bool:
    """Whether a weight on this scheme becomes codes, and not floats."""
    return scheme is not None and not isinstance(scheme, FloatScheme)


def grid_of(steps: Iterable[Step]) -> Scheme:
    """The one scheme of all packed weights."""
    [scheme] = {step.scheme for step in steps if step.scheme is not None and is_packed(step.scheme)}
    return scheme
