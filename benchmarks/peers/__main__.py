"""How mcpmq compares with AutoRound and GPTQModel at the same bits, on the same model, shown the same data.

python -m benchmarks.peers      installs the tools, quantizes every way, measures, writes benchmarks/results/peers.json

What is already in build/peers is not made again; remove it to begin anew.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.peers import text_checkpoint, unscaled_checkpoint
from benchmarks.peers.artifacts import (
    CHECKPOINTS,
    MADE,
    MODELS,
    ROOT,
    SETS,
    WAYS,
    Way,
    install,
    make,
    python_of,
)
from benchmarks.peers.decoders import Decoder, written_by_mcpmq, written_by_peer
from benchmarks.peers.metrics import Distance, distance, estimates, kinds_of
from benchmarks.peers.original_model import Original
from mcpmq.dataset import CalibrationSet
from mcpmq.system.environment import describe_machine, installed_versions

STARTER, HELDOUT = (ROOT / "calibration" / name for name in ("starter", "heldout"))
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
KINDS = ("image", "text")
TOOLS = {"autoround": "auto-round", "gptqmodel": "GPTQModel"}
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


def prepare() -> dict[str, int]:
    """What every tool is shown, as sets for mcpmq and as checkpoints for tools for text; tokens of each set."""
    SETS.mkdir(parents=True, exist_ok=True)
    if not (SETS / "images").is_symlink():
        (SETS / "images").symlink_to(STARTER)
    text_checkpoint.write_without_images(STARTER, SETS / "text")
    unscaled_checkpoint.write(MODELS["reference"], MODELS["plain"])
    tokens = {}
    for model, folder in MODELS.items():
        original = Original.open(folder)
        for shown in ("images", "text"):
            ids = text_checkpoint.write(original, CalibrationSet.open(SETS / shown), CHECKPOINTS / model / shown)
            tokens[shown] = sum(map(len, ids))
    return tokens


def decoder_of(way: Way) -> Decoder:
    """The quantized layers of the language model."""
    folder = MADE / way.name
    if way.tool == "mcpmq":
        return written_by_mcpmq(folder)
    return written_by_peer(next(folder.rglob("config.json")).parent)


def measured(model: str) -> Iterator[dict[str, object]]:
    """Every way to quantize a model against the original, on the held-out answers."""
    original, samples = Original.open(MODELS[model]), CalibrationSet.open(HELDOUT)
    inputs, kinds, ours = original.inputs(samples), kinds_of(samples), None
    embeddings = [original.embeddings(sample) for sample in inputs]
    before = original.answers(inputs, embeddings)
    for way in (one for one in WAYS if one.model == model):
        decoder, cost = decoder_of(way), asdict(make(way))
        original.wear(decoder.weights)
        found = distance(before, original.answers(inputs, embeddings), inputs)
        ours = ours or found
        results = {kind: _dumped(found, ours, [one == kind for one in kinds]) for kind in KINDS}
        yield asdict(way) | {"bits_per_weight": decoder.bits_per_weight, "cost": cost, "kinds": results}


def _dumped(one: Distance, ours: Distance, chosen: list[bool]) -> dict[str, object]:
    return {name: estimate.model_dump() for name, estimate in estimates(one, ours, chosen).items()}


def versions() -> dict[str, dict[str, str]]:
    """Of the packages that matter in every environment."""
    found = {"mcpmq": installed_versions(("mcpmq", "torch", "transformers"))}
    for tool, package in TOOLS.items():
        words = [python_of(tool), "-c", VERSIONS, package, "torch", "transformers"]
        found[tool] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    """Everything, in order."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    tokens = prepare()
    for tool in TOOLS:
        install(tool)
    for way in sorted(WAYS, key=lambda way: way.options.get("iters", 0)):  # the slow ones last
        print(f"{way.name}: {make(way).processor_seconds:.1f} processor seconds", flush=True)
    facts = {
        "command": "python -m benchmarks.peers",
        "commit": commit.stdout.strip(),
        "machine": describe_machine(),
        "versions": versions(),
        "tokens": tokens,
        "ways": [found for model in MODELS for found in measured(model)],
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
