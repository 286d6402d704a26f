"""Exports the reference checkpoint in every Hugging Face format, lets each format's own reader load it, and compares.

python -m benchmarks.compat --gptqmodel PYTHON   PYTHON: of an environment with gptqmodel, which reads gptq and awq

The other side is always the same weights dequantized by mcpmq and computed in float32, on the same samples.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.run import HELDOUT, REFERENCE, RESULTS, ROOT, Command, timed
from mcpmq.dataset import CalibrationSet
from mcpmq.execution.torch_model import build, floats_of
from mcpmq.families import family_named
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.system.environment import describe_machine

WORK = ROOT / "build" / "benchmarks" / "readers"
EVERY = 38  # of 304 held-out samples: eight
Logits = dict[str, Tensor]  # by sample, [tokens, vocabulary]


@dataclass(frozen=True, slots=True)
class Case:
    """One artifact, what its reader computes in, and how far a logit may be, in standard deviations of all."""

    format: str
    scheme: str
    dtype: str
    limit: float

    @property
    def folder(self) -> Path:
        return WORK / f"{self.format}-{self.scheme}"


CASES = (
    Case("gptq", "int4-g128", "float16", 0.02),
    Case("gptq", "int4-g32-asym", "float16", 0.02),
    Case("gptq", "int8-row", "float16", 0.02),
    Case("awq", "int4-g128", "float16", 0.02),
    Case("awq", "int4-g64-asym", "float16", 0.02),
    Case("bnb", "nf4", "bfloat16", 0.2),
    Case("bnb", "fp4", "bfloat16", 0.2),
    Case("bnb", "int8-row", "bfloat16", 0.5),  # its inputs are rounded to 8 bits, too
    Case("compressed-tensors", "int4-g128", "float32", 1e-4),
    Case("compressed-tensors", "int8-row", "float32", 1e-4),
)


def exported(case: Case) -> Command:
    """The reference with the layers of its language model on a scheme, in a format."""
    folder = case.folder
    folder.mkdir(parents=True)
    recipe, codes, out = folder / "recipe.toml", folder / "quantized", folder / "artifact"
    recipe.write_text(f'name = "language-{case.scheme}"\n[weights]\n"language.*" = "{case.scheme}"\n')
    timed("quantize", REFERENCE, codes, "--recipe", recipe, out=codes)
    return timed("export", codes, out, "--format", case.format, out=out)


def write_inputs(file: Path) -> None:
    """Held-out images and questions as the model takes them."""
    processor = family_named("minicpm-v-2.6").processor(REFERENCE)
    given: dict[str, Tensor] = {}
    for sample in CalibrationSet.open(HELDOUT).samples[::EVERY]:
        inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        for name, value in processor.arguments(inputs).items():
            given[f"{sample.id}|{name}"] = torch.from_numpy(value).contiguous()
    save_file(given, file)


def read(case: Case, python: str) -> tuple[dict[str, Any], Logits]:
    """What the reader computes, in a process of its own; who it is."""
    folder = case.folder
    out = folder / "logits.safetensors"
    arguments = [folder / "artifact", case.dtype, WORK / "inputs.safetensors", out]
    with (folder / "log").open("w") as log:
        command = [python, Path(__file__).with_name("logits.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if subprocess.run(command, stdout=log, stderr=log, cwd=folder, env=environment).returncode:
            raise SystemExit(f"{case.format} {case.scheme} was not read: see {folder / 'log'}")
    with safe_open(out, "pt") as opened:
        return json.loads(opened.metadata()["facts"]), load_file(out)


def dequantized(folder: Path) -> Logits:
    """The same by the native module in float32, with the artifact's own weights unpacked by mcpmq."""
    opened = HuggingFaceArtifact.open(folder / "artifact")
    native = build(family_named(opened.artifact.manifest.family), opened.config, list(opened.specs.values()))
    for block in native.blocks:
        native.fill(block, lambda spec: floats_of(opened.load(spec.name), spec))
    samples: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(WORK / "inputs.safetensors").items():
        sample, _, argument = name.partition("|")
        samples.setdefault(sample, {})[argument] = value
    with torch.inference_mode():
        return {name: native.module(**given, use_cache=False).logits[0] for name, given in samples.items()}


def reading(case: Case, written: Command, python: str) -> dict[str, Any]:
    """One artifact loaded by its reader, and compared: what is recorded."""
    facts, found = read(case, python)
    expected = dequantized(case.folder)
    difference = max(float((found[name] - logits).abs().max()) for name, logits in expected.items())
    deviation = float(torch.cat([logits.flatten() for logits in expected.values()]).std())
    print(f"{case.format} {case.scheme}: {difference:.2g}, {difference / deviation:.2%} of a standard deviation")
    if difference > case.limit * deviation:
        raise SystemExit(f"{case.format} {case.scheme}: the reader makes something else of it than mcpmq does")
    return {
        **{key: value for key, value in asdict(case).items() if key in ("format", "scheme")},
        **facts,
        "largest_logit_difference": float(f"{difference:.3g}"),
        "logits_standard_deviation": float(f"{deviation:.3g}"),
        "written_bytes": written.written_bytes,
        "peak_bytes_while_writing": written.peak_resident_bytes,
    }


def main(gptqmodel: str) -> None:
    """Have everything read, and write the record."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    # First of all: a process is charged with the memory of the one that starts it, which is little yet.
    written = {case: exported(case) for case in CASES}
    write_inputs(WORK / "inputs.safetensors")
    pythons = {"gptq": gptqmodel, "awq": gptqmodel}
    readings = [reading(case, written[case], pythons.get(case.format, sys.executable)) for case in CASES]
    record = {"command": "make readers", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    (RESULTS / "readers.json").write_text(json.dumps(record | {"readings": readings}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gptqmodel", metavar="PYTHON", required=True)
    main(parser.parse_args().gptqmodel)
