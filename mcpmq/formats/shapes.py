"""Shapes of weights in files, where hidden widths that are no whole number of blocks are filled up with zeros."""

from collections.abc import Mapping

from mcpmq.families.family import TensorSpec


def stored_shape(spec: TensorSpec, width: int) -> tuple[int, ...]:
    """The shape of a weight in a file, [out, in], where a hidden width that may grow is `width`."""
    shape = spec.shape[::-1] if spec.transposed else spec.shape
    if spec.may_grow is None:
        return shape
    return (width, *shape[1:]) if spec.may_grow == "rows" else (shape[0], width)


def changed_shapes(specs: Mapping[str, TensorSpec], width: int) -> dict[str, tuple[int, ...]]:
    """The same of every weight and bias whose shape another width changes, by common name."""
    growing = {name: spec for name, spec in specs.items() if spec.may_grow}
    shapes = {name: stored_shape(spec, width) for name, spec in growing.items()}
    return {name: shape for name, shape in shapes.items() if shape != specs[name].shape}
