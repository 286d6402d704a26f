"""Why a recipe says what it says, in words above its lines."""

from collections.abc import Mapping, Sequence

from mcpmq.mixed_precision.assignment import decided, said
from mcpmq.mixed_precision.knapsack import Option
from mcpmq.recipe import Recipe


def comments_on(
    recipe: Recipe, options: Mapping[str, Sequence[Option]], summary: Sequence[str]
) -> dict[str, Sequence[str]]:
    """A summary above all, and above each line what its weights cost."""
    globs = {glob: str(scheme or "keep") for glob, scheme in recipe.weights.items()}
    held = decided(globs, options)
    whole = sum(_cost(names, globs[glob], options) for glob, names in held.items())
    comments: dict[str, Sequence[str]] = {"": summary}
    for glob, names in held.items():
        if names:
            comments[glob] = [_reason(glob, names, globs, options, whole)]
    return comments


def _reason(
    glob: str,
    names: Sequence[str],
    globs: Mapping[str, str],
    options: Mapping[str, Sequence[Option]],
    whole: float,
) -> str:
    """What a line costs, and what the line before it would."""
    cost = _cost(names, globs[glob], options) / whole if whole else 0.0
    before = {one: scheme for one, scheme in globs.items() if one != glob}
    instead = said(before, names[0])
    count = f"{len(names)} weights, " if len(names) > 1 else ""
    otherwise = f"; on {instead} {_cost(names, instead, options) / whole:.1%}" if instead and whole else ""
    return f"{count}{cost:.1%} of the loss{otherwise}"


def _cost(names: Sequence[str], scheme: str, options: Mapping[str, Sequence[Option]]) -> float:
    return sum(one.loss for name in names for one in options[name] if one.scheme == scheme)
