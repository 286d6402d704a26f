"""How a plan looks: layers that are alike share a row; JSON lists every tensor."""

from re import sub
from typing import TYPE_CHECKING, Any

from mcpmq.system.table import Row, Table, megabytes
from mcpmq.ui.terminal import print_table

if TYPE_CHECKING:  # help and errors must be there at once
    from mcpmq.estimate.forecast import Forecast
    from mcpmq.plan import Plan, Step


def plan(plan: "Plan", expected: "Forecast | None" = None, *, as_json: bool = False) -> None:
    """What becomes of every weight, layers that are alike in one row; and what is expected of each format."""
    facts = expected.facts() if expected else {}
    print_table(_plan_table(plan), _plan_facts(plan) | facts, as_json=as_json)
    if expected and expected.layouts and not as_json:
        print_table(expected.table(), facts)


def _plan_facts(plan: "Plan") -> dict[str, Any]:
    weights = [
        {
            "name": step.name,
            "hub_name": step.spec.hub_name,
            "shape": list(step.spec.shape),
            "dtype": step.dtype,
            "scheme": str(step.scheme) if step.scheme else None,
            "reason": step.reason,
            "source_nbytes": step.source_nbytes,
            "nbytes": step.nbytes,
        }
        for step in plan.steps
    ]
    sizes = {"source_nbytes": plan.checkpoint.nbytes, "nbytes": plan.nbytes}
    return {"family": plan.checkpoint.family.name, "recipe": plan.recipe.written(), **sizes, "weights": weights}


def _plan_table(plan: "Plan") -> Table:
    alike: dict[tuple[str, ...], list[Step]] = {}
    for step in plan.steps:
        alike.setdefault(_alike(step), []).append(step)
    rows: list[Row] = [
        (
            name,
            [
                f"{len(steps)} x {shape}" if shape else f"{len(steps)}",
                scheme,
                megabytes(sum(step.nbytes for step in steps)),
                reason,
            ],
        )
        for (name, shape, scheme, reason), steps in alike.items()
    ]
    before, after = plan.checkpoint.nbytes, plan.nbytes
    rows.append(("total", [f"{len(plan.steps)}", "", megabytes(after), f"{after / before:.1%} of the original"]))
    title = (
        f"{plan.recipe.name} on {plan.checkpoint.path.resolve().name}: {megabytes(before)} become {megabytes(after)}"
    )
    notes = ["Sizes are predicted from headers; --format adds a format's own. --json lists every tensor.", *plan.notes]
    return Table(title, ["weights", "becomes", "size", "why"], rows, notes)


def _alike(step: "Step") -> tuple[str, ...]:
    kept = f"{'' if step.scheme else 'kept '}{step.scheme or step.dtype}"
    if step.spec.role == "other":
        return f"{step.spec.component}, norms and biases", "", kept, step.reason
    name = sub(r"\.layers\.\d+\.", ".layers.*.", step.name)
    return name, "x".join(map(str, step.spec.shape)), kept, step.reason
