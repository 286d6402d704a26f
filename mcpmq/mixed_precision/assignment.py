"""Convert a scheme for every weight to recipe lines: a few globs, and single weights as exceptions."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from re import sub

from mcpmq.mixed_precision.choices import Option

LOSS_TOLERANCE = 0.005  # share of the loss that may be added for a recipe with fewer lines


def merge_globs(assignment: Mapping[str, Option], options: Mapping[str, Sequence[Option]]) -> dict[str, Option]:
    """Return an assignment with fewer exceptions.

    Weights take the most common scheme of the same weight in other layers, or of their component, where it is not
    larger, up to LOSS_TOLERANCE of additional loss in total.
    """
    allowed = LOSS_TOLERANCE * sum(option.loss for option in assignment.values())
    result = dict(assignment)
    for level in (_all_layers, _component):
        for names in _group({name: one.scheme for name, one in result.items()}, level).values():
            scheme = _most_common(result[name].scheme for name in names)
            for name in names:
                option = next((one for one in options[name] if one.scheme == scheme), result[name])
                added = option.loss - result[name].loss
                if option.nbytes <= result[name].nbytes and added <= allowed:
                    allowed -= max(0.0, added)
                    result[name] = option
    return result


def to_globs(schemes: Mapping[str, str]) -> dict[str, str]:
    """Return globs, of which the last match wins, that give every weight, by common name, its scheme.

    Globs are ordered from coarse to fine: a component, a weight in all layers, a single weight. The scheme of a glob is
    the most common of its weights, the first of equals. Globs without effect are omitted.
    """
    globs: dict[str, str] = {}
    for level in (_component, _all_layers, str):
        for glob, names in _group(schemes, level).items():
            scheme = _most_common(schemes[name] for name in names)
            if any(scheme_of(globs, name) != scheme for name in names):
                globs[glob] = scheme
    return _without_unused(globs, schemes)


def _component(name: str) -> str:
    component, _, rest = name.partition(".")
    return f"{component}.*" if rest else component


def _all_layers(name: str) -> str:
    return sub(r"\.layers\.\d+\.", ".layers.*.", name)


def _most_common(schemes: Iterable[str]) -> str:
    [(scheme, _)] = Counter(schemes).most_common(1)
    return scheme


def _group(schemes: Mapping[str, str], level: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in schemes:
        groups.setdefault(level(name), []).append(name)
    return groups


def group_by_glob(globs: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """Group weights by the last glob that matches them."""
    groups: dict[str, list[str]] = {glob: [] for glob in globs}
    for name in names:
        groups[next(glob for glob in reversed(list(globs)) if fnmatchcase(name, glob))].append(name)
    return groups


def scheme_of(globs: Mapping[str, str], name: str) -> str | None:
    """Return the scheme of the last glob that matches a weight."""
    return next((scheme for glob, scheme in reversed(list(globs.items())) if fnmatchcase(name, glob)), None)


def _without_unused(globs: Mapping[str, str], schemes: Mapping[str, str]) -> dict[str, str]:
    """Remove globs whose weights all have the same scheme without them."""
    kept = dict(globs)
    for glob in globs:
        others = {other: scheme for other, scheme in kept.items() if other != glob}
        if all(scheme_of(others, name) == scheme for name, scheme in schemes.items() if fnmatchcase(name, glob)):
            kept = others
    return kept
