"""Compare the logits of every Hugging Face format, loaded by the packages of the format, with those of mcpmq.

python -m benchmarks.compat --gptqmodel PYTHON   PYTHON: interpreter of an environment with gptqmodel, for gptq and awq

The expected logits are those of the same weights dequantized by mcpmq, in float32, on the same samples.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.commands import HELDOUT, REFERENCE, ROOT, WORK, CommandResult, run_command, write_result
from mcpmq.dataset import SampleSet
from mcpmq.execution.torch_model import build_model, to_float
from mcpmq.families import family_named
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.system.environment import describe_machine

COMPAT_WORK = WORK / "compat"
INPUTS = COMPAT_WORK / "inputs.safetensors"
SAMPLE_STRIDE = 38  # 8 of 304 held-out samples
Logits = dict[str, Tensor]  # by sample, [tokens, vocabulary]


@dataclass(frozen=True, slots=True)
class Case:
    """One artifact, its compute dtype, and the allowed logit difference in standard deviations of all logits."""

    format: str
    scheme: str
    compute_dtype: str
    max_difference: float

    @property
    def folder(self) -> Path:
        return COMPAT_WORK / f"{self.format}-{self.scheme}"


CASES = (
    Case("gptq", "int4-g128", "float16", 0.02),
    Case("gptq", "int4-g32-asym", "float16", 0.02),
    Case("gptq", "int8-row", "float16", 0.02),
    Case("awq", "int4-g128", "float16", 0.02),
    Case("awq", "int4-g64-asym", "float16", 0.02),
    Case("bnb", "nf4", "bfloat16", 0.2),
    Case("bnb", "fp4", "bfloat16", 0.2),
    Case("bnb", "int8-row", "bfloat16", 0.5),  # bitsandbytes also rounds the inputs to 8 bits
    Case("compressed-tensors", "int4-g128", "float32", 1e-4),
    Case("compressed-tensors", "int8-row", "float32", 1e-4),
)


def export_case(case: Case) -> CommandResult:
    """Export the reference checkpoint with the language layers quantized to the scheme."""
    folder = case.folder
    folder.mkdir(parents=True)
    recipe, codes, out = folder / "recipe.toml", folder / "quantized", folder / "artifact"
    recipe.write_text(f'name = "language-{case.scheme}"\n[weights]\n"language.*" = "{case.scheme}"\n')
    run_command("quantize", REFERENCE, codes, "--recipe", recipe, out=codes)
    return run_command("export", codes, out, "--format", case.format, out=out)


def write_inputs(file: Path) -> None:
    """Write the model inputs of held-out samples."""
    processor = family_named("minicpm-v-2.6").open_processor(REFERENCE)
    tensors: dict[str, Tensor] = {}
    for sample in SampleSet.open(HELDOUT).samples[::SAMPLE_STRIDE]:
        inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        for name, value in processor.model_inputs(inputs).items():
            tensors[f"{sample.id}|{name}"] = torch.from_numpy(value).contiguous()
    save_file(tensors, file)


def compute_reader_logits(case: Case, python: str) -> tuple[dict[str, Any], Logits]:
    """Load the artifact with the packages of its format, in a process of its own; return versions and logits."""
    folder = case.folder
    out = folder / "logits.safetensors"
    arguments: list[str | Path] = [folder / "artifact", case.compute_dtype, INPUTS, out]
    with (folder / "log").open("w") as log:
        command: list[str | Path] = [python, Path(__file__).with_name("logits.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if subprocess.run(command, stdout=log, stderr=log, cwd=folder, env=environment).returncode:
            raise SystemExit(f"{case.format} {case.scheme} failed to load: see {folder / 'log'}")
    with safe_open(out, "pt") as opened:
        return json.loads(opened.metadata()["facts"]), load_file(out)


def compute_expected_logits(folder: Path) -> Logits:
    """Compute the logits in float32 with the weights of the artifact dequantized by mcpmq."""
    artifact = HuggingFaceArtifact.open(folder / "artifact")
    torch_model = build_model(
        family_named(artifact.artifact.manifest.family), artifact.config, list(artifact.specs.values())
    )
    for block in torch_model.blocks:
        torch_model.load_block(block, lambda spec: to_float(artifact.load(spec.name), spec))
    samples: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(INPUTS).items():
        sample, _, argument = name.partition("|")
        samples.setdefault(sample, {})[argument] = value
    with torch.inference_mode():
        return {name: torch_model.module(**inputs, use_cache=False).logits[0] for name, inputs in samples.items()}


def compare_case(case: Case, written: CommandResult, python: str) -> dict[str, Any]:
    """Compare the logits of one artifact and return the recorded row.

    Raises:
        SystemExit: the artifact does not load, or a logit differs by more than allowed.
    """
    facts, logits = compute_reader_logits(case, python)
    expected = compute_expected_logits(case.folder)
    difference = max(float((logits[name] - values).abs().max()) for name, values in expected.items())
    deviation = float(torch.cat([values.flatten() for values in expected.values()]).std())
    print(f"{case.format} {case.scheme}: {difference:.2g}, {difference / deviation:.2%} of a standard deviation")
    if difference > case.max_difference * deviation:
        raise SystemExit(f"{case.format} {case.scheme}: the difference exceeds {case.max_difference:.2%}")
    return {
        "format": case.format,
        "scheme": case.scheme,
        **facts,
        "max_logit_difference": float(f"{difference:.3g}"),
        "logits_standard_deviation": float(f"{deviation:.3g}"),
        "written_bytes": written.written_bytes,
        "export_peak_rss_bytes": written.peak_rss_bytes,
    }


def main(gptqmodel: str) -> None:
    """Compare all cases and record the result."""
    shutil.rmtree(COMPAT_WORK, ignore_errors=True)
    COMPAT_WORK.mkdir(parents=True)
    # Exports run first: the peak RSS of a child process includes that of its parent at the start.
    written = {case: export_case(case) for case in CASES}
    write_inputs(INPUTS)
    pythons = {"gptq": gptqmodel, "awq": gptqmodel}
    comparisons = [compare_case(case, written[case], pythons.get(case.format, sys.executable)) for case in CASES]
    record = {"command": "make compat", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    write_result("compat", record | {"comparisons": comparisons})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gptqmodel", metavar="PYTHON", required=True)
    main(parser.parse_args().gptqmodel)
