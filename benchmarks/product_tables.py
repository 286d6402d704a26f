"""Parts of README.md that are generated from the code: commands, families, schemes, file tree."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.commands import ROOT
from mcpmq.formats import support

FOLDER_DESCRIPTIONS = {
    "calibration": "calibration and evaluation sets, the reference checkpoint, and the scripts that generate them",
    "benchmarks": "benchmark scripts and committed results",
    "docs": "glossary and Python API",
    "examples": "release workflow, gates, report schema",
    "tests": "mirrors mcpmq/",
}
MAX_SENTENCE_LENGTH = 95


def command_help() -> str:
    """Return the output of `mcpmq --help`."""
    terminal = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mcpmq", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=terminal).stdout
    return "```\n" + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n```"


def family_table() -> str:
    """Return the table of `mcpmq families` without its title."""
    return support.support_table().to_markdown().partition("\n\n")[2].strip()


def scheme_table() -> str:
    """Return the formats that support each scheme."""
    return support.scheme_table().to_markdown().partition("\n\n")[2].strip()


def transformers_js_text() -> str:
    """Return the sentence on transformers.js, with the version that the tests install."""
    pinned = json.loads((ROOT / "tests/transformers_js/package.json").read_text())["dependencies"]
    version = f"{pinned['@huggingface/transformers']} in Node: `make transformers-js`"
    return (
        f"ONNX artifacts of Qwen2-VL, Qwen2.5-VL and Qwen3-VL load in transformers.js ({version}) and generate\n"
        "the same answers. transformers.js shrinks images without antialiasing, so resize images before you pass them."
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
