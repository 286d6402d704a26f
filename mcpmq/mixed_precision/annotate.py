"""Comments of a recipe: its summary, and the estimated loss of the weights of each line."""

from collections.abc import Mapping, Sequence

from mcpmq.mixed_precision.assignment import group_by_glob, scheme_of
from mcpmq.mixed_precision.choices import Option
from mcpmq.recipe import Recipe


def annotate(
    recipe: Recipe, options: Mapping[str, Sequence[Option]], summary: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Return comments by glob; the summary, under an empty glob, is at the top of the file."""
    schemes = {glob: str(scheme or "keep") for glob, scheme in recipe.weights.items()}
    groups = group_by_glob(schemes, options)
    total = sum(_loss(names, schemes[glob], options) for glob, names in groups.items())
    comments: dict[str, Sequence[str]] = {"": summary}
    for glob, names in groups.items():
        if names:
            comments[glob] = [_comment(glob, names, schemes, options, total)]
    return comments


def _comment(
    glob: str,
    names: Sequence[str],
    schemes: Mapping[str, str],
    options: Mapping[str, Sequence[Option]],
    total: float,
) -> str:
    """Return the share of the loss of a line, and the share on the scheme that the weights have without it."""
    share = _loss(names, schemes[glob], options) / total if total else 0.0
    otherwise = scheme_of({other: scheme for other, scheme in schemes.items() if other != glob}, names[0])
    count = f"{len(names)} weights, " if len(names) > 1 else ""
    without = f"; on {otherwise} {_loss(names, otherwise, options) / total:.1%}" if otherwise and total else ""
    return f"{count}{share:.1%} of the loss{without}"


def _loss(names: Sequence[str], scheme: str, options: Mapping[str, Sequence[Option]]) -> float:
    return sum(one.loss for name in names for one in options[name] if one.scheme == scheme)
