"""What readers of Hugging Face artifacts can hold, whatever the format: decided without torch."""

from collections.abc import Callable, Iterable

from mcpmq.families.family import TensorSpec
from mcpmq.plan import Step
from mcpmq.scheme import FloatScheme, Scheme


def is_linear(spec: TensorSpec) -> bool:
    """Whether a weight is that of a linear module of a transformer layer: what readers replace by a packed one."""
    in_layer = ".layers." in spec.name
    return spec.role == "matrix" and in_layer and not spec.transposed and spec.hub_name.endswith(".weight")


def refusal(step: Step, components: tuple[str, ...], fits: Callable[[Scheme], bool], grids: str) -> str | None:
    """Why readers that replace the linear layers of some components cannot hold a weight there; None if they can.

    `fits` says whether a grid is one of theirs, `grids` names those. Floats of any type are held: a reader converts
    them to the one that it computes in.
    """
    scheme = step.scheme
    if scheme is None or isinstance(scheme, FloatScheme):
        return None
    if step.spec.component not in components or not is_linear(step.spec):
        return f"its readers pack the linear layers of {' and '.join(components)} alone; it can hold `keep`"
    return None if fits(scheme) else f"it can hold {grids} or `keep`"


def is_packed(scheme: Scheme | None) -> bool:
    """Whether a weight on this scheme becomes codes, and not floats."""
    return scheme is not None and not isinstance(scheme, FloatScheme)


def grid_of(steps: Iterable[Step]) -> Scheme:
    """The one scheme of all packed weights."""
    [scheme] = {step.scheme for step in steps if step.scheme is not None and is_packed(step.scheme)}
    return scheme
