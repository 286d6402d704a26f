"""Why a recipe says what it says, in words above its lines."""

from collections.abc import Mapping, Sequence

from mcpmq.fit.knapsack import Option
from mcpmq.fit.mixture import decided, said
from mcpmq.forecast import Layout
from mcpmq.recipe import Recipe


def comments_on(
    recipe: Recipe, options: Mapping[str, Sequence[Option]], layout: Layout, chosen: Mapping[str, Option], origin: str
) -> dict[str, list[str]]:
    """Why the lines say what they say."""
    globs = {glob: str(scheme or "keep") for glob, scheme in recipe.weights.items()}
    whole = sum(option.loss for option in chosen.values())
    comments = {
        "": [
            f"The least loss that was found within {recipe.name}: {layout.nbytes:,} bytes of files.",
            f"Expected divergence of an answer token: {whole:.2g} nats, predicted from {origin}.",
            "Losses below are shares of it; the last line that matches a weight decides. Edit freely.",
        ]
    }
    for glob, names in decided(globs, chosen).items():
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
