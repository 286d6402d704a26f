"""How a plan, an artifact, a report or an error looks: in a terminal, as JSON, as Markdown. Results go to stdout, the
rest to stderr."""

import json
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from re import sub
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as DrawnTable
from rich.text import Text

from mcpmq.bars import Bars
from mcpmq.errors import McpmqError
from mcpmq.progress import Progress, silent
from mcpmq.table import Row, Table, megabytes

if TYPE_CHECKING:  # help and errors must be there at once
    from mcpmq.artifact import Artifact
    from mcpmq.by_component import Split
    from mcpmq.calibration import CalibrationSet
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.forecast import Forecast
    from mcpmq.plan import Plan, Step
    from mcpmq.report import Report

UNBROKEN = ("weights", "becomes", "size")
LEFT = ("weights", "becomes", "why", "checkpoints", "gguf", "onnx")  # columns of words; figures stand to the right


@dataclass(slots=True)
class _Verbosity:
    quiet: bool = False
    verbose: bool = False


_verbosity = _Verbosity()


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Quiet: no progress and no notices. Verbose: errors come with their traceback."""
    _verbosity.quiet, _verbosity.verbose = quiet, verbose


def _console(*, stderr: bool = False) -> Console:
    # Names hold brackets and numbers that are not to be read as markup.
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def report(report: "Report", *, as_json: bool = False, as_markdown: bool = False) -> None:
    """The original beside its artifacts."""
    from mcpmq.report import table_of

    result(table_of(report), report.model_dump(mode="json"), as_json=as_json, as_markdown=as_markdown)


def split(split: "Split", *, as_json: bool = False) -> None:
    """What each component costs."""
    from mcpmq.by_component import table_of

    result(table_of(split), split.model_dump(mode="json"), as_json=as_json)


def plan(plan: "Plan", expected: "Forecast | None" = None, *, as_json: bool = False) -> None:
    """What becomes of every weight, layers that are alike in one row; and what is expected of each format."""
    result(_plan_table(plan), _plan_facts(plan) | (expected.facts() if expected else {}), as_json=as_json)
    if expected and expected.layouts and not as_json:
        _draw(expected.table())


def artifact(artifact: "Artifact", *, as_json: bool = False) -> None:
    """What an artifact is, from what, and what it weighs."""
    result(_artifact_table(artifact), artifact.manifest.model_dump(mode="json"), as_json=as_json)


def checkpoint(checkpoint: "Checkpoint", *, as_json: bool = False) -> None:
    """What a checkpoint is made of."""
    _print_facts("checkpoint", str(checkpoint.path), checkpoint.facts(), as_json=as_json)


def calibration_set(samples: "CalibrationSet", *, as_json: bool = False) -> None:
    """How many images and questions there are."""
    _print_facts("set", str(samples.path), _set_facts(samples), as_json=as_json)


def families(*, as_json: bool = False, as_markdown: bool = False) -> None:
    """Which models are supported, and what the formats do with them."""
    from mcpmq.supported import facts, table

    result(table(), facts(), as_json=as_json, as_markdown=as_markdown)


def path(path: Path, *, as_json: bool = False) -> None:
    """Say what a path is.

    Raises:
        McpmqError: it is nothing that mcpmq knows, or it is broken.
    """
    from mcpmq import artifact as artifacts
    from mcpmq import calibration
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.report import JSON_FILE, Report

    if path.name == JSON_FILE or (path / JSON_FILE).is_file():
        report(Report.load(path), as_json=as_json)
    elif (path / artifacts.MANIFEST).is_file():
        artifact(artifacts.Artifact.open(path), as_json=as_json)
    elif (path / calibration.MANIFEST).is_file():
        calibration_set(calibration.CalibrationSet.open(path), as_json=as_json)
    else:
        checkpoint(Checkpoint.open(path), as_json=as_json)


def error(error: McpmqError) -> None:
    """What went wrong and what to do about it."""
    console = _console(stderr=True)
    if _verbosity.verbose:
        console.print("".join(traceback.format_exception(error)), soft_wrap=True)
    console.print(Text("error: ", "bold red").append(str(error), "default not bold"), soft_wrap=True)
    if error.hint:
        console.print(Text("\nhint: ", "bold cyan").append(error.hint, "default not bold"), soft_wrap=True)


def notice(text: str) -> None:
    """A line beside the result, unless silence was asked for."""
    if not _verbosity.quiet:
        _console(stderr=True).print(text, soft_wrap=True)


def progress() -> Progress:
    """A bar for every loop that runs, on stderr; nothing where nobody looks or silence was asked for."""
    console = _console(stderr=True)
    return silent if _verbosity.quiet or not console.is_terminal else Bars(console)


def result(table: Table, facts: Any, *, as_json: bool = False, as_markdown: bool = False) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    elif as_markdown:
        sys.stdout.write(table.markdown())
    else:
        _draw(table)


def _print_facts(kind: str, where: str, facts: dict[str, Any], *, as_json: bool) -> None:
    rows = [(name.replace("_", " "), [_told(name, value)]) for name, value in facts.items()]
    result(Table(f"{kind} {where}", [""], rows), {"kind": kind, "path": where, **facts}, as_json=as_json)


def _told(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(name, one)}" for key, one in value.items())
    if isinstance(value, int) and "bytes" in name:
        return megabytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _draw(table: Table) -> None:
    console = _console()
    facts = list(table.columns) == [""]
    drawn = DrawnTable(box=box.SIMPLE_HEAD, show_header=not facts, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("", no_wrap=True)
    whole_words = _widest(table) <= console.width
    for column in table.columns:
        justify: Literal["left", "right"] = "left" if facts or column in LEFT else "right"
        heading = _heading(column)
        width = max(map(len, heading.split()), default=0) if whole_words else None
        drawn.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=column in UNBROKEN, min_width=width)
    for name, cells in table.rows:
        drawn.add_row(Text(name), *[Text(cell) for cell in cells], style="dim" if name.startswith(" ") else "")
    console.print(Text(table.title, "bold"))
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, "dim"))


def _heading(column: str) -> str:
    """A word a line, also of words with a hyphen, so that figures decide how wide a column is."""
    return column.replace("-", "-\n").replace(" ", "\n")


def _widest(table: Table) -> int:
    """Characters a line takes when headings break between words and nothing else breaks."""
    cells = zip(*(cells for _, cells in table.rows), strict=True)
    heads = [_heading(column).split() for column in table.columns]
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, cells, strict=True)]
    return max(len(name) for name, _ in table.rows) + sum(widths) + 2 * len(widths) + 3


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


def _artifact_table(artifact: "Artifact") -> Table:
    manifest = artifact.manifest
    sizes = artifact.nbytes_by_component()
    rows: list[Row] = [
        ("family", [manifest.family]),
        (
            "made from",
            [f"{manifest.source.name}, {megabytes(manifest.source.nbytes)}, sha256 {manifest.source.sha256}"],
        ),
        ("recipe", [str(manifest.recipe.get("name"))]),
        ("calibrated on", [_calibrated_on(artifact)]),
        *((f"{component} saw", [seen]) for component, seen in _coverage(artifact).items()),
        ("weights", [", ".join(f"{count} {name}" for name, count in _schemes(artifact).most_common())]),
        *((f"{name} on disk", [megabytes(nbytes)]) for name, nbytes in sizes.items()),
        ("total on disk", [f"{megabytes(sum(sizes.values()))} in {len(manifest.files)} files"]),
        ("versions", [", ".join(f"{name} {number}" for name, number in manifest.versions.items())]),
    ]
    return Table(f"{manifest.kind} artifact {artifact.path}", [""], rows, manifest.notes)


def _calibrated_on(artifact: "Artifact") -> str:
    used = artifact.manifest.calibrated_on
    if used is None:
        return "nothing: rounded to the nearest"
    return f"{used.name}, {used.samples:,} samples, {used.with_image:,} with an image, sha256 {used.sha256}"


def _coverage(artifact: "Artifact") -> dict[str, str]:
    """What the matrix of every component that saw the fewest tokens saw while calibrating."""
    seen: dict[str, list[dict[str, int]]] = {}
    for record in artifact.manifest.weights:
        if record.tokens is not None:
            seen.setdefault(record.name.partition(".")[0], []).append(record.tokens)
    fewest = {component: min(tokens, key=lambda one: sum(one.values())) for component, tokens in seen.items()}
    return {component: _told_tokens(fewest[component], tokens) for component, tokens in seen.items()}


def _told_tokens(fewest: dict[str, int], tokens: list[dict[str, int]]) -> str:
    figures = ", ".join(f"{count:,} {kind}" for kind, count in fewest.items() if count)
    return f"{'' if all(one == fewest for one in tokens) else 'at least '}{figures} tokens"


def _schemes(artifact: "Artifact") -> Counter[str]:
    return Counter(record.scheme or f"kept {record.dtype}" for record in artifact.manifest.weights)


def _set_facts(samples: "CalibrationSet") -> dict[str, Any]:
    return {
        "samples": len(samples),
        "with_image": sum(sample.image is not None for sample in samples),
        "tags": dict(Counter(tag for sample in samples for tag in sample.tags)),
        "sha256": samples.sha256,
    }
