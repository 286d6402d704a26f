"""Inputs of the campaign: a tiny checkpoint, a sample set, and artifacts, reports and files made from them."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.commands import recipe_argument
from mcpmq.artifact import Artifact
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.package import ReleaseOptions, package
from tests.fake_releases import report_for, with_license
from tests.tiny import build_checkpoint

GATE = """artifacts = "*"

[original.image]
kl_divergence = { at_most = 0.5, on = "high" }
perplexity_ratio = { at_most = 1.02 }

[original.artifact]
nbytes_ratio = { at_most = 0.9 }

[baseline.text]
kl_divergence_increase = { at_most = 0.001 }
"""
RECIPE = """name = "mine"
method = "gptq"

[token_weights]
text = 1.0
vision = 0.5

[weights]
"embedding" = "int8-g32"
"language.*" = "int4-g32"
"head" = "int8-g32"
"vision.*" = "int8-g32"
"projector.*" = "int8-g32"
"""
MEASURED = ("measurement.json", "report.json", "report.md", "report.html")  # hold times and memory


def build_inputs(folder: Path) -> Path:
    """Write all inputs to a folder."""
    source = Checkpoint.open(with_license(build_checkpoint(folder / "made" / "checkpoint"), folder))
    samples = SampleSet.open(_write_set(folder / "set"))
    quantized = quantize(make_plan(source, Recipe.load("phone-int4")), folder / "quantized")
    language = quantize(make_plan(source, Recipe.load(recipe_argument("language-int4"))), folder / "made" / "language")
    artifacts = [export(quantized, "gguf", folder / "gguf"), export(quantized, "onnx", folder / "onnx")]
    export(language, "gptq", folder / "gptq")
    write_imatrix(source, samples, folder / "imatrix")
    (folder / "report.json").write_text(report_for(artifacts).model_dump_json())
    (folder / "gate.toml").write_text(GATE)
    (folder / "recipe.toml").write_text(RECIPE)
    package(artifacts, source, report_for(artifacts), folder / "release", ReleaseOptions())
    shutil.rmtree(folder / "made")
    return folder


def _write_set(folder: Path) -> Path:
    """Write samples with an image of one slice, with an image of several slices, and with text alone."""
    folder.mkdir()
    random, lines = np.random.default_rng(0), []
    for number, side in enumerate((56, 112, 0, 56, 0)):
        line = {"id": str(number), "prompt": "What does the sign say?", "answer": f"The sign says {number}."}
        if side:
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{number}.png")
            line["image"] = f"{number}.png"
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def copy_inputs(inputs: Path, case: Path, names: tuple[str, ...], *, link: bool = True) -> Path:
    """Copy inputs into the folder of a case, by default as hard links: files are replaced, never changed in place."""
    case.mkdir(parents=True)
    copy = os.link if link else shutil.copyfile
    for name in names:
        if (inputs / name).is_dir():
            shutil.copytree(inputs / name, case / name, copy_function=copy)
        else:
            copy(inputs / name, case / name)
    return case


def replace(path: Path, content: bytes) -> None:
    """Write a file without a change of the linked original."""
    path.unlink()
    path.write_bytes(content)


def update_hash(artifact: Path, file: Path) -> None:
    """Enter the present size and hash of a file into the manifest, so that readers open it."""
    manifest = json.loads((artifact / "mcpmq.json").read_bytes())
    for record in manifest["files"]:
        if record["path"] == file.relative_to(artifact).as_posix() and file.is_file():
            with file.open("rb") as stream:
                record.update(nbytes=file.stat().st_size, sha256=file_digest(stream, "sha256").hexdigest())
    replace(artifact / "mcpmq.json", json.dumps(manifest, indent=1).encode())


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return the content of all files by relative path; measured results without times and memory, links by target."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = _content(path)
        elif not any(path.iterdir()):
            found[name] = "empty folder"
    return found


def _content(path: Path) -> bytes:
    if path.name == "report.json":
        return json.dumps(_without_measured(json.loads(path.read_bytes())), sort_keys=True).encode()
    return b"measured" if path.name in MEASURED or ".cache" in path.parts else path.read_bytes()


def _without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_measured(part) for key, part in value.items() if key != "machine_dependent"}
    return [_without_measured(part) for part in value] if isinstance(value, list) else value


def open_artifact(folder: Path) -> Callable[[], None]:
    """Return the check of the hashes of an artifact."""
    return Artifact.open(folder).verify
