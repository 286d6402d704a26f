"""The parts of the README that are made from the code and from measured results, so that they cannot drift."""

import ast
import subprocess
import sys
from pathlib import Path

from mcpmq.families import FAMILIES
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FORMATS, format_named
from mcpmq.plan import Step
from mcpmq.recipe import GGML_BLOCKS, parse_scheme
from mcpmq.report import Report, table_of

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "reference.json"
SCHEMES = ["int4-g32", "int4-g128", "int4-g32-asym", "int8-g32", "int8-row", *GGML_BLOCKS, "f16", "bf16", "f32"]
FOLDERS = {
    "calibration": "what the models look at: data, and the scripts that made it",
    "benchmarks": "figures, with the command, the machine and the versions that gave them",
    "tests": "mirrors mcpmq/, file for file",
}


def result_table() -> str:
    """The committed report of the reference checkpoint."""
    return table_of(Report.load(RESULT)).markdown()


def commands() -> str:
    """What `mcpmq --help` lists."""
    text = subprocess.run(
        [sys.executable, "-m", "mcpmq", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PATH": ""},
    ).stdout
    return "```\n" + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n```"


def schemes() -> str:
    """Which format holds which scheme, asked of the formats themselves."""
    spec = TensorSpec("language.layers.0.mlp.up", "", (256, 256), "matrix")
    rows = [f"| scheme | {' | '.join(FORMATS)} |", "|---|" + "---|" * len(FORMATS)]
    for name in SCHEMES:
        step = Step(spec, "bfloat16", parse_scheme(name), "")
        marks = ["" if format_named(layout).refuses(step) else "yes" for layout in FORMATS]
        rows.append(f"| `{name}` | {' | '.join(marks)} |")
    return "\n".join(rows)


def families() -> str:
    """The families that are supported."""
    return ", ".join(family.name for family in FAMILIES)


def file_tree() -> str:
    """Every module and the sentence it opens with."""
    lines = [f"{folder}/  {sentence}" for folder, sentence in FOLDERS.items()] + ["mcpmq/"]
    for path in sorted((ROOT / "mcpmq").glob("*")):
        if path.is_dir() and (path / "__init__.py").is_file():
            lines.append(f"  {path.name + '/':22}{_sentence(path / '__init__.py')}")
        elif path.suffix == ".py" and not path.name.startswith("__"):
            lines.append(f"  {path.name:22}{_sentence(path)}")
    return "```\n" + "\n".join(lines) + "\n```"


def _sentence(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
