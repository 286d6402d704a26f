"""Parts of README.md and docs/ that are generated from the code: commands, families, schemes, recipes, file tree."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from benchmarks.commands import ROOT
from benchmarks.markdown import table
from benchmarks.result_tables import load_report
from mcpmq.cli import app
from mcpmq.formats import FORMATS, recipes, support
from mcpmq.recipe import BUILTIN_DIRECTORY, Recipe, recipe_reason
from mcpmq.report import summary_table
from mcpmq.ui.layout import lay_out

FOLDER_DESCRIPTIONS = {
    "calibration": "calibration and evaluation sets, the reference checkpoint, and the scripts that generate them",
    "benchmarks": "benchmark scripts and committed results",
    "docs": "the documentation; `make site` builds its site",
    "examples": "workflows for Python and for GitHub",
    "tests": "mirrors mcpmq/",
}
MAX_SENTENCE_LENGTH, QUICK_START_COLUMNS = 95, 100


def command_help() -> str:
    """Return the output of `mcpmq --help`."""
    terminal = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mcpmq", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=terminal).stdout
    return "```\n" + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n```"


def all_commands() -> dict[str, Any]:
    """Return every command by its name; the name of a command of a group begins with that of the group."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {other}": one for other, one in inner.items()}
    return found


def command_reference() -> str:
    """Return the arguments and options of every command."""
    parts = []
    for name, command in all_commands().items():
        rows = [[_parameter_name(one), _parameter_text(one)] for one in command.params]
        summary = (command.help or "").split("\n\n")[0]
        parts.append(f"## mcpmq {name}\n\n{summary}.\n\n{table(['argument or option', ''], rows, 2)}")
    return "\n\n".join(parts)


def _parameter_name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    value = "" if parameter.is_flag else f" {parameter.metavar or ''}".rstrip()
    names = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
    return names.replace("|", "\\|")


def _parameter_text(parameter: Any) -> str:
    text, default = parameter.help or "", parameter.default
    has_default = isinstance(default, int | float | str) and not isinstance(default, bool)
    return f"{text}; default: {default}" if has_default and "default" not in text else text


def quick_start_output() -> str:
    """Return the last output of `mcpmq convert` for the first artifact of a committed report, at 100 columns."""
    report = load_report("reference")
    summary = summary_table(report.model_copy(update={"artifacts": report.artifacts[:1]}))
    return "```\n" + "\n".join(line.text for line in lay_out(summary, QUICK_START_COLUMNS)).strip() + "\n```"


def short_family_table() -> str:
    """Return the formats of every family; families with equal formats share a row."""
    families: dict[tuple[str, ...], list[str]] = {}
    for family in support.support_matrix():
        notes = (family[name] != "yes" or name in family["caveats"] for name in FORMATS)
        cells = (family[name].partition(":")[0] + "\\*" * note for name, note in zip(FORMATS, notes, strict=True))
        families.setdefault(tuple(cells), []).append(family["family"] + " (text only)" * (not family["has_vision"]))
    rows = [[", ".join(names), *cells] for cells, names in families.items()]
    return table(["", *FORMATS], rows, 1 + len(FORMATS))


def family_table() -> str:
    """Return the table of `mcpmq families` without its title."""
    return support.support_table().to_markdown().partition("\n\n")[2].strip()


def scheme_table() -> str:
    """Return the formats that support each scheme."""
    return support.scheme_table().to_markdown().partition("\n\n")[2].strip()


OTHERS_IN_TRANSFORMERS_JS = """\
| family | reason |
|---|---|
| Gemma 3 | its class passes no `token_type_ids` to the decoder, which then applies a causal mask to image tokens |
| LFM2-VL | its processor pads slices to one length; the vision graph has slices of one size without padding |
| InternVL, MiniCPM, Qwen2.5-Omni | it has no class for them |"""


def transformers_js_text() -> str:
    """Return the sentence on transformers.js, with the version that the tests install."""
    pinned = json.loads((ROOT / "tests/transformers_js/package.json").read_text())["dependencies"]
    version = f"{pinned['@huggingface/transformers']} in Node: `make transformers-js`"
    return (
        "ONNX artifacts of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and SmolVLM2 load in transformers.js\n"
        f"({version}) and generate the same answers. transformers.js resizes images\n"
        "without antialiasing, so resize them before you pass them. Families that do not work there:"
        f"\n\n{OTHERS_IN_TRANSFORMERS_JS}"
    )


DIFFERENCES_IN_GENAI = """\
| family | difference in GenAI |
|---|---|
| all | one row or column of tokens more if a side is an odd multiple of half a token; slightly different pixels \
if an image is enlarged in width and reduced in height |
| Gemma 3 | an image has 256 tokens, as in all published checkpoints; others have no files of GenAI |
| LFM2-VL | a large image is one slice instead of tiles and a thumbnail; the images of a prompt have one size |
| SmolVLM2, InternVL, MiniCPM, Qwen2.5-Omni | it has no model type for them, and their artifacts no files of GenAI |"""


def genai_text() -> str:
    """Return the sentence on ONNX Runtime GenAI, with the version that the tests install."""
    [version] = re.findall(r"onnxruntime-genai==(\S+)", (ROOT / "Makefile").read_text())
    return (
        "ONNX artifacts of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, Gemma 3 and LFM2-VL load in ONNX Runtime GenAI\n"
        f"({version} on the CPU: `make genai`), and generate the same answers with the same logits, for prompts\n"
        f"without and with images. GenAI has an image processor of its own:"
        f"\n\n{DIFFERENCES_IN_GENAI}"
    )


def file_tree() -> str:
    """Return every top-level module with the first sentence of its docstring."""
    lines = [f"{folder + '/':24}{description}" for folder, description in FOLDER_DESCRIPTIONS.items()] + ["mcpmq/"]
    for path in sorted((ROOT / "mcpmq").glob("*")):
        if (path / "__init__.py").is_file():
            lines.append(f"  {path.name + '/':22}{_sentence(path / '__init__.py')}")
        elif path.suffix == ".py" and not path.name.startswith("__"):
            lines.append(f"  {path.name:22}{_sentence(path)}")
    return "```\n" + "\n".join(lines) + "\n```"


def _sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring; of a long one the part before a colon or semicolon."""
    sentence = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    if len(sentence) > MAX_SENTENCE_LENGTH:
        sentence = re.split(r"[:;] |\. ", sentence)[0]
    return sentence.rstrip(".")


def recipe_table() -> str:
    """Return every built-in recipe with its method and the comment at its top."""
    rows = []
    for path in sorted(BUILTIN_DIRECTORY.glob("*.toml")):
        recipe = Recipe.load(path.stem)
        method = f"{recipe.method}, {recipe.smooth}" if recipe.smooth != "none" else recipe.method
        rows.append([f"`{path.stem}`", method, recipe_reason(path.stem)])
    return table(["recipe", "method", "reason"], rows, 3)


def measured_recipes_table() -> str:
    """Return the table of `mcpmq recipes` without its title."""
    return recipes.recipes_table().to_markdown().partition("\n\n")[2].strip()
