"""The parts of the READMEs that are made from the code and from measured results, so that they cannot drift."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from mcpmq import supported
from mcpmq.evaluate import Estimate
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FORMATS, format_named
from mcpmq.plan import Step
from mcpmq.recipe import GGML_BLOCKS, parse_scheme
from mcpmq.report import Report, table_of
from mcpmq.table import megabytes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCHEMES = ["int4-g32", "int4-g128", "int4-g32-asym", "int8-g32", "int8-row", *GGML_BLOCKS, "f16", "bf16", "f32"]
WIDEST = 95
FOLDERS = {
    "calibration": "what the models look at: data, and the scripts that made it",
    "benchmarks": "figures, with the command, the machine and the versions that gave them",
    "tests": "mirrors mcpmq/, file for file",
}


def report_table(name: str) -> str:
    """A committed report, under a bold line instead of its heading."""
    heading, _, rest = table_of(_report(name)).markdown().rstrip().partition("\n")
    return f"**{heading.removeprefix('## ')}**\n{rest}"


def _report(name: str) -> Report:
    return Report.load(RESULTS / f"{name}.json")


def engines_table() -> str:
    """How far each engine is from PyTorch when nothing is quantized: what is left is the engine's own rounding."""
    report = _report("unquantized")
    rows = ["| engine | tokens | largest difference of a token's loss | mean difference |", "|---|--:|--:|--:|"]
    for entry in report.artifacts:
        pairs = zip(report.original.samples, entry.measurement.samples, strict=True)
        differences = [b - a for one, other in pairs for a, b in zip(one.losses, other.losses, strict=True)]
        largest, mean = max(map(abs, differences)), sum(differences) / len(differences)
        rows.append(f"| {entry.measurement.engine} | {len(differences):,} | {largest:.1e} | {mean:+.1e} |")
    return "\n".join(rows)


def cuts_table() -> str:
    """What it costs that llama.cpp cuts and resizes images in its own way: nothing is quantized."""
    ours, theirs = (_report(name).artifacts[0].differences for name in ("unquantized", "engine-cuts"))
    rows = ["| images | given the published slices | cutting them itself |", "|---|--:|--:|"]
    for kind in ("image", "nonsquare"):
        cells = [_percent(one[kind].perplexity_ratio) for one in (ours, theirs)]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _percent(ratio: Estimate) -> str:
    return f"{(ratio.mean - 1) * 100:+.2f} ± {ratio.standard_error * 100:.2f} %"


def sight_table() -> str:
    """Perplexity of the original with the right images and with another sample's."""
    right, wrong = (_report(name).original.kinds["image"].perplexity for name in ("reference", "shuffled"))
    return "\n".join(
        [
            "| images | perplexity of image answers |",
            "|---|--:|",
            f"| their own | {right.mean:.3f} ± {right.standard_error:.3f} |",
            f"| another sample's | {wrong.mean:.3f} ± {wrong.standard_error:.3f} |",
            f"| ratio | {wrong.mean / right.mean:.2f} |",
        ]
    )


def conversion_table(name: str) -> str:
    """Seconds, memory and bytes of every conversion command, with the machine and the versions."""
    facts = json.loads((RESULTS / f"{name}.json").read_text())
    machine, versions = facts["machine"], facts["versions"]
    rows = ["| command | seconds | peak memory | written |", "|---|--:|--:|--:|"]
    for one in facts["commands"]:
        peak, written = megabytes(one["peak_resident_bytes"]), megabytes(one["written_bytes"])
        rows.append(f"| `{one['command']}` | {one['seconds']:.1f} | {peak} | {written} |")
    told = ", ".join(f"{package} {number}" for package, number in versions.items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return "\n".join([*rows, "", f"`{facts['command']}` at {facts['commit']}; {where}; {told}."])


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
    """What `mcpmq families` prints, without its heading."""
    return supported.table().markdown().partition("\n\n")[2].strip()


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
    """What a module says of itself; if that is long, to the first colon or semicolon."""
    whole = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    return whole.rstrip(".") if len(whole) <= WIDEST else re.split(r"[:;] |\. ", whole)[0].rstrip(".")
