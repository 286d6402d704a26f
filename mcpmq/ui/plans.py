"""Print a plan and its forecast: equal layers share a row; JSON lists every tensor."""

from collections.abc import Sequence
from re import sub
from typing import TYPE_CHECKING, Any

from mcpmq.system.table import Row, Table, format_megabytes
from mcpmq.ui.terminal import print_json, print_table

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.estimate.forecast import Forecast
    from mcpmq.plan import Plan, TensorPlan


def print_plans(plans: "Sequence[tuple[Plan, Forecast]]", *, as_json: bool = False) -> None:
    """Print one plan after the other; several plans are one JSON array."""
    if as_json and len(plans) > 1:
        print_json([_plan_to_dict(plan) | forecast.to_dict() for plan, forecast in plans])
        return
    for plan, forecast in plans:
        print_plan(plan, forecast, as_json=as_json)


def print_plan(plan: "Plan", forecast: "Forecast | None" = None, *, as_json: bool = False) -> None:
    """Print the scheme and size of every weight, and the forecast of every format."""
    estimates = forecast.to_dict() if forecast else {}
    print_table(_plan_table(plan), _plan_to_dict(plan) | estimates, as_json=as_json)
    if forecast and forecast.formats and not as_json:
        print_table(forecast.to_table(), estimates)


def _plan_to_dict(plan: "Plan") -> dict[str, Any]:
    weights = [
        {
            "name": tensor.name,
            "hub_name": tensor.spec.hub_name,
            "shape": list(tensor.spec.shape),
            "dtype": tensor.dtype,
            "scheme": str(tensor.scheme) if tensor.scheme else None,
            "reason": tensor.reason,
            "source_nbytes": tensor.source_nbytes,
            "nbytes": tensor.nbytes,
        }
        for tensor in plan.tensors
    ]
    sizes = {"source_nbytes": plan.checkpoint.source.nbytes, "nbytes": plan.nbytes}
    return {"family": plan.checkpoint.family.name, "recipe": plan.recipe.to_dict(), **sizes, "weights": weights}


def _plan_table(plan: "Plan") -> Table:
    groups: dict[tuple[str, ...], list[TensorPlan]] = {}
    for tensor in plan.tensors:
        groups.setdefault(_row_key(tensor), []).append(tensor)
    rows: list[Row] = []
    for (name, shape, scheme, reason), tensors in groups.items():
        weights = f"{len(tensors)} x {shape}" if shape else f"{len(tensors)}"
        rows.append((name, [weights, scheme, format_megabytes(sum(tensor.nbytes for tensor in tensors)), reason]))
    before, after = plan.checkpoint.source.nbytes, plan.nbytes
    total = [f"{len(plan.tensors)}", "", format_megabytes(after), f"{after / before:.1%} of the original"]
    source = plan.checkpoint.merged_name
    title = f"{plan.recipe.name} on {source}: {format_megabytes(before)} to {format_megabytes(after)}"
    notes = [
        "Sizes are computed from headers; --format adds those of a format. --json lists every tensor.",
        *plan.notes,
    ]
    return Table(title, ["weights", "scheme", "size", "reason"], [*rows, ("total", total)], notes)


def _row_key(tensor: "TensorPlan") -> tuple[str, ...]:
    """Return name, shape, scheme and reason; tensors with the same key share a row."""
    scheme = f"{'' if tensor.scheme else 'kept '}{tensor.scheme or tensor.dtype}"
    if tensor.spec.role == "other":
        return f"{tensor.spec.component}, norms and biases", "", scheme, tensor.reason
    name = sub(r"\.layers\.\d+\.", ".layers.*.", tensor.name)
    return name, "x".join(map(str, tensor.spec.shape)), scheme, tensor.reason
