"""The parts of the READMEs that are made from the code and from measured results, so that they cannot drift."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mcpmq.evaluate import Estimate
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FORMATS, format_named, support
from mcpmq.plan import Step
from mcpmq.report import Report, table_of
from mcpmq.report.ablation import Split
from mcpmq.report.ablation import table_of as split_table_of
from mcpmq.scheme import CODEBOOKS, GGML_BLOCKS, parse_scheme
from mcpmq.system.table import megabytes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCHEMES = [
    "int4-g32",
    "int4-g128",
    "int4-g32-asym",
    "int8-g32",
    "int8-row",
    *GGML_BLOCKS,
    *CODEBOOKS,
    "f16",
    "bf16",
    "f32",
]
WIDEST = 95
PEERS = {
    ("mcpmq", "nearest"): "mcpmq, to nearest",
    ("mcpmq", "gptq"): "mcpmq, GPTQ",
    ("mcpmq", "smooth-gptq"): "**mcpmq, smoothed, GPTQ**",
    ("gptqmodel", "gptq"): "GPTQModel, GPTQ",
    ("gptqmodel", "gptq-desc-act"): "GPTQModel, GPTQ, `desc_act`",
    ("gptqmodel", "awq"): "GPTQModel, AWQ",
    ("autoround", "nearest"): "AutoRound, no steps",
    ("autoround", "200-steps"): "AutoRound, 200 steps",
}
READ_THERE = "and say there what they say here; it shrinks images without antialiasing, so bring them to size first."
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


def budgets_table() -> str:
    """Fixed recipes and mixes that were found, by size: how far the answers are from the original's."""
    facts = json.loads((RESULTS / "budgets.json").read_text())
    rows = ["| recipe | bytes | KL of image answers | KL of text answers |", "|---|--:|--:|--:|"]
    for one in sorted(facts["artifacts"], key=lambda one: int(one["nbytes"])):
        told = [one["kl_divergence"][kind] for kind in ("image", "text")]
        cells = [f"{kl['value'] * 1000:.2f} ± {(kl['high'] - kl['low']) * 500:.2f}" for kl in told]
        name = "**found**" if one["recipe"].startswith("fit-") else f"`{one['recipe']}`"
        rows.append(f"| {name} | {one['nbytes']:,} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", provenance_of(facts)])


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
    return f"{(ratio.value - 1) * 100:+.2f} ± {ratio.standard_error * 100:.2f} %"


def sight_table() -> str:
    """Perplexity of the original with the right images and with another sample's."""
    right, wrong = (_report(name).original.kinds["image"].perplexity for name in ("reference", "shuffled"))
    return "\n".join(
        [
            "| images | perplexity of image answers |",
            "|---|--:|",
            f"| their own | {right.value:.3f} ± {right.standard_error:.3f} |",
            f"| another sample's | {wrong.value:.3f} ± {wrong.standard_error:.3f} |",
            f"| ratio | {wrong.value / right.value:.2f} |",
        ]
    )


def conversion_table(name: str) -> str:
    """Seconds, memory and bytes of every conversion command, with the machine and the versions."""
    facts = json.loads((RESULTS / f"{name}.json").read_text())
    rows = ["| command | seconds | peak memory | written |", "|---|--:|--:|--:|"]
    for one in facts["commands"]:
        peak, written = megabytes(one["peak_resident_bytes"]), megabytes(one["written_bytes"])
        rows.append(f"| `{one['command']}` | {one['seconds']:.1f} | {peak} | {written} |")
    return "\n".join([*rows, "", provenance_of(facts)])


def stages_table() -> str:
    """Seconds of every stage on matrices of true width, and how fast it multiplies beside a plain product."""
    file = RESULTS / "stages.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.stages`."
    facts = json.loads(file.read_text())
    rows = ["| stage | rows x columns | seconds | GFLOP/s | million weights/s |", "|---|---|--:|--:|--:|"]
    for one in facts["stages"]:
        speed = f"{one['gflop'] / one['seconds']:,.0f}" if one["gflop"] else ""
        weights = f"{one['rows'] * one['columns'] / one['seconds'] / 1e6:,.1f}"
        shape = f"{one['rows']} x {one['columns']}"
        rows.append(f"| {one['stage']} | {shape} | {one['seconds']:.2f} | {speed} | {weights} |")
    return "\n".join([*rows, "", f"{facts['tokens']:,} tokens, {facts['threads']} threads. {provenance_of(facts)}"])


def vision_table(name: str) -> str:
    """What vision and connector cost, weigh and take in every engine, calibrated and not."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.vision`."
    facts = json.loads(file.read_text())
    judged = "image" in facts["rows"][0]
    figures = ["perplexity, %", "KL divergence, 10⁻³", "same first choice, %"] if judged else []
    unit, scale = ("ms a slice", 1000) if judged else ("s a slice", 1)
    head = ["vision and connector", "rounded", *figures, "MB", unit]
    rows = [f"| {' | '.join(head)} |", f"|---|---|{'--:|' * (len(head) - 2)}"]
    for one in facts["rows"]:
        cells = [f"{one['format']} `{one['scheme']}`{', inputs u8' * bool(one['inputs'])}", _how(one)]
        if judged:
            found = {name: Estimate.model_validate(value) for name, value in one["image"].items()}
            agreement = found["top_1_agreement"]
            cells += [_percent(found["perplexity_ratio"]).removesuffix(" %"), _thousandths(found["kl_divergence"], "")]
            cells.append(f"{agreement.value * 100:.2f} ± {agreement.standard_error * 100:.2f}")
        cells += [megabytes(one["nbytes"]).removesuffix(" MB"), f"{one['seconds_a_slice'] * scale:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", provenance_of(facts)])


def _how(one: dict[str, Any]) -> str:
    if one["scheme"] in ("f16", "f32"):
        return ""
    smoothed = "SmoothQuant, " * (one["smooth"] == "smoothquant")
    return smoothed + {"rtn": "to nearest", "gptq": "GPTQ"}[one["round"]]


def components_table(method: str) -> str:
    """What every component costs where all have the same grid."""
    file = RESULTS / f"components-{method}.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.vision`."
    heading, _, rest = split_table_of(Split.model_validate_json(file.read_bytes())).markdown().rstrip().partition("\n")
    return f"**{heading.removeprefix('## ')}**\n{rest}"


def provenance_of(facts: dict[str, Any]) -> str:
    """Command, commit, machine and versions of a result."""
    return _origin(facts, ", ".join(f"{package} {number}" for package, number in facts["versions"].items()))


def _origin(facts: dict[str, Any], versions: str) -> str:
    machine = facts["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return f"`{facts['command']}` at {facts['commit']}; {where}; {versions}."


def peers_table(model: str, kind: str) -> str:
    """How far every tool's rounding is from the original, on held-out answers of one kind."""
    rows = [
        "| | shown | KL divergence, 10⁻³ | than ours | perplexity | same first choice |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for way in _ways(model):
        found = {name: Estimate.model_validate(value) for name, value in way["kinds"][kind].items()}
        cells = [
            _thousandths(found["kl_divergence"], ""),
            _thousandths(found["excess"], "+") if found["excess"].standard_error else "",
            _percent(found["perplexity_ratio"]),
            f"{found['top_1_agreement'].value * 100:.1f} ± {found['top_1_agreement'].standard_error * 100:.1f} %",
        ]
        rows.append(f"| {PEERS[way['tool'], way['method']]} | {way['shown']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def peers_costs() -> str:
    """What quantizing took every tool, and what a weight then takes, with the machine and the versions."""
    facts = json.loads((RESULTS / "peers.json").read_text())
    rows = ["| | shown | tokens | processor seconds | peak memory | bits a weight |", "|---|---|--:|--:|--:|--:|"]
    for way in _ways("reference"):
        cost, tokens = way["cost"], facts["tokens"].get(way["shown"], 0)
        figures = f"{cost['processor_seconds']:.0f} | {megabytes(cost['peak_resident_bytes'])}"
        named = f"{PEERS[way['tool'], way['method']]} | {way['shown']} | {tokens:,}"
        rows.append(f"| {named} | {figures} | {way['bits_per_weight']:.2f} |")
    packages = {f"{package} {number}" for found in facts["versions"].values() for package, number in found.items()}
    return "\n".join([*rows, "", _origin(facts, ", ".join(sorted(packages, key=str.lower)))])


def _ways(model: str) -> list[dict[str, Any]]:
    ways: list[dict[str, Any]] = json.loads((RESULTS / "peers.json").read_text())["ways"]
    return [way for way in ways if way["model"] == model]


def _thousandths(estimate: Estimate, sign: str) -> str:
    return f"{estimate.value * 1000:{sign}.2f} ± {estimate.standard_error * 1000:.2f}"


def readers_table() -> str:
    """What the reader of each Hugging Face format makes of an artifact, beside mcpmq's own dequantized weights."""
    facts = json.loads((RESULTS / "readers.json").read_text())
    rows = [
        "| format | scheme | loaded by | computed in | largest difference of a logit | written | peak of writing |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for one in facts["readings"]:
        reader = ", ".join(f"{package} {number}" for package, number in one["reader"].items())
        share = one["largest_logit_difference"] / one["logits_standard_deviation"]
        sizes = [megabytes(one[key]) for key in ("written_bytes", "peak_bytes_while_writing")]
        difference = f"{one['largest_logit_difference']:.2g} ({share:.2%} of a standard deviation)"
        cells = [one["format"], f"`{one['scheme']}`", reader, one["computed_in"], difference, *sizes]
        rows.append(f"| {' | '.join(cells)} |")
    machine = facts["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return "\n".join([*rows, "", f"`{facts['command']}` on {facts['date']}; {where}."])


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
    return support.table().markdown().partition("\n\n")[2].strip()


def transformers_js() -> str:
    """The version that the tests install, and what it does with ONNX artifacts."""
    pinned = json.loads((ROOT / "tests/transformers_js/package.json").read_text())["dependencies"]
    version = f"transformers.js ({pinned['@huggingface/transformers']} in Node: `make transformers-js`)"
    return f"ONNX artifacts of Qwen2-VL, 2.5 and 3 load from their folder in {version}\n{READ_THERE}"


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
