"""One scheme for every weight, as a recipe that a person can read: what most share stands in one line."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from re import sub

from mcpmq.mixed_precision.knapsack import Option

TOLERATED = 0.005  # of the loss, that is given up for a recipe with fewer lines


def simpler(chosen: Mapping[str, Option], options: Mapping[str, Sequence[Option]]) -> dict[str, Option]:
    """The same mix with fewer exceptions: weights take the scheme that most of their kind have, or of their component,
    where that is no larger and all of it together costs next to nothing."""
    allowed = TOLERATED * sum(option.loss for option in chosen.values())
    result = dict(chosen)
    for level in (_kind, _component):
        for names in _grouped({name: one.scheme for name, one in result.items()}, level).values():
            [(most, _)] = Counter(result[name].scheme for name in names).most_common(1)
            for name in names:
                instead = next((one for one in options[name] if one.scheme == most), result[name])
                more = instead.loss - result[name].loss
                if instead.nbytes <= result[name].nbytes and more <= allowed:
                    allowed -= max(0.0, more)
                    result[name] = instead
    return result


def as_globs(schemes: Mapping[str, str]) -> dict[str, str]:
    """Globs to schemes, where the last match wins, that give every weight (by common name) its own scheme.

    From coarse to fine: a component, a kind of weight in all layers, one weight. A line says the scheme that most of
    its weights have, of equals the one that comes first, and is left out where the lines above say the same.
    """
    globs: dict[str, str] = {}
    for level in (_component, _kind, str):
        for glob, names in _grouped(schemes, level).items():
            [(most, _)] = Counter(schemes[name] for name in names).most_common(1)
            if any(said(globs, name) != most for name in names):
                globs[glob] = most
    return _needed(globs, schemes)


def _component(name: str) -> str:
    component, _, rest = name.partition(".")
    return f"{component}.*" if rest else component


def _kind(name: str) -> str:
    return sub(r"\.layers\.\d+\.", ".layers.*.", name)


def _grouped(schemes: Mapping[str, str], level: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in schemes:
        groups.setdefault(level(name), []).append(name)
    return groups


def decided(globs: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """The weights that each line decides, as the last that matches them."""
    held: dict[str, list[str]] = {glob: [] for glob in globs}
    for name in names:
        held[next(glob for glob in reversed(list(globs)) if fnmatchcase(name, glob))].append(name)
    return held


def said(globs: Mapping[str, str], name: str) -> str | None:
    """What the last line that matches says."""
    return next((scheme for glob, scheme in reversed(list(globs.items())) if fnmatchcase(name, glob)), None)


def _needed(globs: Mapping[str, str], schemes: Mapping[str, str]) -> dict[str, str]:
    """Without lines that decide nothing, because finer ones say something for all of their weights."""
    kept = dict(globs)
    for glob in globs:
        without = {one: scheme for one, scheme in kept.items() if one != glob}
        if all(said(without, name) == scheme for name, scheme in schemes.items() if fnmatchcase(name, glob)):
            kept = without
    return kept
