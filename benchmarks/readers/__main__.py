"""Exports the reference checkpoint in every Hugging Face format, lets each format's own reader load it, and compares.

python -m benchmarks.readers [--gptqmodel PYTHON]   PYTHON: of an environment with gptqmodel, which reads gptq and awq

The other side is always the same weights dequantized by mcpmq and computed in float32, on the same samples.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.readers.language_alone import write_language_alone
from benchmarks.run import HELDOUT, REFERENCE, RESULTS, ROOT, timed
from mcpmq.artifact import Artifact
from mcpmq.calibration import CalibrationSet
from mcpmq.families import family_named
from mcpmq.families.family import Inputs
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.machine import describe_machine
from mcpmq.native import build, floats_of
from mcpmq.runners.transformers import READERS, load

WORK = ROOT / "build" / "benchmarks" / "readers"
SAMPLES = 8
# By format and scheme, how far a logit may be, in standard deviations of the logits; what is computed otherwise than in
# float32 is told in the record.
CASES = {
    ("gptq", "int4-g128"): 0.02,
    ("gptq", "int4-g32-asym"): 0.02,
    ("gptq", "int8-row"): 0.02,
    ("awq", "int4-g128"): 0.02,
    ("awq", "int4-g64-asym"): 0.02,
    ("bnb", "nf4"): 0.2,
    ("bnb", "fp4"): 0.2,
    ("bnb", "int8-row"): 0.5,
    ("compressed-tensors", "int4-g128"): 1e-4,
    ("compressed-tensors", "int8-row"): 1e-4,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader made of one artifact."""

    format: str
    scheme: str
    reader: dict[str, str]  # package -> version
    layer: str  # the class that holds a packed weight
    computed_in: str
    largest_logit_difference: float
    logits_standard_deviation: float
    written_bytes: int
    peak_bytes_while_writing: int

    @property
    def within(self) -> bool:
        return self.largest_logit_difference <= CASES[self.format, self.scheme] * self.logits_standard_deviation


def exported(name: str, scheme: str) -> tuple[Artifact, int, int]:
    """The reference with the layers of its language model on a scheme, the bytes written and the peak memory."""
    folder = WORK / f"{name}-{scheme}"
    folder.mkdir(parents=True)
    recipe = folder / "recipe.toml"
    recipe.write_text(f'name = "language-{scheme}"\n[weights]\n"language.*" = "{scheme}"\n')
    timed("quantize", REFERENCE, folder / "quantized", "--recipe", recipe, out=folder / "quantized")
    command = timed("export", folder / "quantized", folder / "out", "--format", name, out=folder / "out")
    return Artifact.open(folder / "out"), command.written_bytes, command.peak_resident_bytes


def dequantized(artifact: Artifact) -> nn.Module:
    """The native module in float32, with the artifact's own weights unpacked by mcpmq."""
    opened = HuggingFaceArtifact.open(artifact.path)
    native = build(family_named(artifact.manifest.family), opened.config, list(opened.specs.values()))
    for block in native.blocks:
        native.fill(block, lambda spec: floats_of(opened.load(spec.name), spec))
    return native.module


def samples(artifact: Artifact) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
    """Held-out images and questions as the model takes them."""
    processor = family_named(artifact.manifest.family).processor(artifact.path)
    for sample in CalibrationSet.open(HELDOUT).samples[:: 304 // SAMPLES][:SAMPLES]:
        inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        yield inputs, {name: torch.from_numpy(value) for name, value in processor.arguments(inputs).items()}


def read_by_transformers(artifact: Artifact) -> tuple[dict[str, Any], list[Tensor]]:
    """Logits of every sample from the reader of this stack, in float32 where the format leaves the choice."""
    exact = artifact.manifest.kind == "compressed-tensors"
    model = load(artifact, torch.float32 if exact else "auto").model
    with torch.inference_mode():
        logits = [model(**tensors, use_cache=False).logits.float() for _, tensors in samples(artifact)]
    packages = ("transformers", READERS[artifact.manifest.kind])
    layer = type(model.get_submodule("llm.model.layers.0.mlp.down_proj")).__name__
    facts = {"reader": {package: version(package) for package in packages}, "layer": layer}
    return facts | {"computed_in": "float32" if exact else "bfloat16"}, logits


def read_by_gptqmodel(artifact: Artifact, model: nn.Module, python: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Logits from gptqmodel, which gets the language model alone, with what images became where they stand."""
    folder = artifact.path.parent
    with torch.inference_mode():
        embeddings = {one.id: _embedded(model, tensors) for one, tensors in samples(artifact)}
    save_file(embeddings, folder / "embeddings.safetensors")
    alone, out = write_language_alone(artifact.path, folder / "alone"), folder / "logits.safetensors"
    script = Path(__file__).with_name("gptqmodel_logits.py")
    with (folder / "log").open("w") as log:
        command = [python, script, alone, folder / "embeddings.safetensors", out]
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=folder, env={"PATH": "/usr/bin:/bin"})
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    found = load_file(out)
    facts = {"reader": json.loads(metadata["versions"]), "layer": metadata["layer"], "computed_in": "float16"}
    return facts, [found[name] for name in embeddings]


def _embedded(model: Any, tensors: dict[str, Tensor]) -> Tensor:
    held = model.get_input_embeddings()(tensors["input_ids"])
    if "pixel_values" in tensors:
        features = model.get_image_features(tensors["pixel_values"], tensors["target_sizes"])
        held = model.place_images(held, features, tensors["image_bound"])
    return held


def reading(name: str, scheme: str, gptqmodel: str | None) -> Reading:
    """Export one artifact and have it read."""
    artifact, nbytes, peak = exported(name, scheme)
    model = dequantized(artifact)
    if name in READERS:
        facts, found = read_by_transformers(artifact)
    else:
        assert gptqmodel is not None
        facts, found = read_by_gptqmodel(artifact, model, gptqmodel)
    with torch.inference_mode():
        expected = [model(**tensors, use_cache=False).logits for _, tensors in samples(artifact)]
    difference = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
    deviation = float(torch.cat([one.flatten() for one in expected]).std())
    return Reading(
        name, scheme, **facts, **_rounded(difference, deviation), written_bytes=nbytes, peak_bytes_while_writing=peak
    )


def _rounded(difference: float, deviation: float) -> dict[str, float]:
    return {
        "largest_logit_difference": float(f"{difference:.3g}"),
        "logits_standard_deviation": float(f"{deviation:.3g}"),
    }


def main(gptqmodel: str | None) -> None:
    """Read everything that there is a reader for; write the record; fail if one is not what was written."""
    shutil.rmtree(WORK, ignore_errors=True)
    readings = [reading(*case, gptqmodel) for case in CASES if case[0] in READERS or gptqmodel]
    facts = {
        "command": "make readers",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "readings": [asdict(one) for one in readings],
    }
    (RESULTS / "readers.json").write_text(json.dumps(facts, indent=1) + "\n")
    for one in readings:
        print(f"{one.format} {one.scheme}: {one.largest_logit_difference} {'' if one.within else 'TOO FAR'}")
    if not all(one.within for one in readings):
        raise SystemExit("a reader makes something else of an artifact than mcpmq does")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gptqmodel", metavar="PYTHON")
    main(parser.parse_args().gptqmodel)
