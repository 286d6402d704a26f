"""Table of benchmarks/README.md about the calibration-set study."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import load_result, table, with_provenance

HEADINGS = ("calibration set", "targets", "samples", "images", "tokens")
DRAWS = ("KLD, images", "second draw", "KLD, text", "second draw")
LABELS = {"nearest": "none: round to nearest", "samples": "drawn", "mixture": "mixture", "turns": "conversations"}
SETTINGS = ("group", "targets", "samples", "image_share", "turns")


def study_table() -> str:
    """Return the KL divergence of every calibration set with half of its interval, in thousandths of a nat.

    The numbers of images and tokens are those of the first draw.
    """
    result = load_result("calibration-study")
    draws: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in result["rows"]:
        draws.setdefault(tuple(one.get(key) for key in SETTINGS), []).append(one)
    return with_provenance(table((*HEADINGS, *DRAWS), list(map(_row, draws.values())), text_columns=2), result)


def _row(draws: Sequence[Mapping[str, Any]]) -> list[str]:
    first = draws[0]
    share = first.get("image_share")
    label = LABELS[first["group"]] + ("" if share is None else f", {share:.0%} with an image")
    counts = [f"{first.get(key, 0):,}" for key in ("samples", "images", "tokens")]
    cells = [_of_draws(draws, group) for group in ("image", "text")]
    return [label, first.get("targets", ""), *counts, *(cell for of_group in cells for cell in of_group)]


def _of_draws(draws: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    """Return the divergences of two draws; an empty cell if there is one."""
    found = [_in_thousandths(one["kl_divergence"][group]) for one in draws]
    return [*found, *[""] * (2 - len(found))]


def _in_thousandths(estimate: Mapping[str, float]) -> str:
    return f"{1000 * estimate['value']:.1f} ± {500 * (estimate['high'] - estimate['low']):.1f}"
