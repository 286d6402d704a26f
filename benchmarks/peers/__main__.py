"""How mcpmq compares with AutoRound and GPTQModel at the same bits, on the same model, shown the same data.

python -m benchmarks.peers      installs the tools, quantizes every way, measures, writes benchmarks/results/peers.json

What is already in build/peers is not made again; remove it to begin anew.
"""

import argparse
import json
import subprocess
from dataclasses import asdict

from benchmarks.peers import text_checkpoint
from benchmarks.peers.decoders import Decoder, written_by_mcpmq, written_by_peer
from benchmarks.peers.making import (
    CHECKPOINTS,
    MADE,
    OURS,
    REFERENCE,
    ROOT,
    SETS,
    SHOWN,
    STARTER,
    WAYS,
    Way,
    install,
    make,
    python_of,
)
from benchmarks.peers.measuring import Distance, distance, estimates, kinds_of
from benchmarks.peers.original import Original
from mcpmq.calibration import CalibrationSet
from mcpmq.machine import describe_machine, installed_versions

HELDOUT = ROOT / "calibration" / "heldout"
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
KINDS = ("image", "text")
TOOLS = {"autoround": "auto-round", "gptqmodel": "GPTQModel"}
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


def prepare(original: Original) -> dict[str, int]:
    """What every tool is shown, as a set for mcpmq and as a checkpoint for tools for text; tokens of each."""
    SETS.mkdir(parents=True, exist_ok=True)
    if not (SETS / "images").is_symlink():
        (SETS / "images").symlink_to(STARTER)
    text_checkpoint.write_without_images(STARTER, SETS / "text")
    tokens = {}
    for shown in SHOWN:
        file = CHECKPOINTS / shown / text_checkpoint.TOKENS
        if not file.is_file():
            text_checkpoint.write(original, CalibrationSet.open(SETS / shown), file.parent)
        tokens[shown] = sum(map(len, json.loads(file.read_text())))
    return tokens


def decoder_of(way: Way) -> Decoder:
    """The quantized layers of the language model."""
    folder = MADE / way.name
    if way.tool == "mcpmq":
        return written_by_mcpmq(folder)
    return written_by_peer(next(folder.rglob("config.json")).parent)


def measured(original: Original) -> list[dict[str, object]]:
    """Every way against the original on the held-out answers, ours first: the others are paired with it."""
    samples = CalibrationSet.open(HELDOUT)
    inputs, kinds = original.inputs(samples), kinds_of(samples)
    embeddings = [original.embeddings(sample) for sample in inputs]
    before, found, bits = original.answers(inputs, embeddings), {}, {}
    for way in WAYS:
        decoder = decoder_of(way)
        original.wear(decoder.weights)
        found[way] = distance(before, original.answers(inputs, embeddings), inputs)
        bits[way] = decoder.bits_per_weight
    return [
        {
            **asdict(way),
            "bits_per_weight": bits[way],
            "cost": asdict(make(way)),
            "kinds": {kind: _dumped(found[way], found[OURS], [one == kind for one in kinds]) for kind in KINDS},
        }
        for way in WAYS
    ]


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
    original = Original.open(REFERENCE)
    tokens = prepare(original)
    for tool in TOOLS:
        install(tool)
    for way in WAYS:
        print(f"{way.name}: {make(way).processor_seconds:.1f} processor seconds", flush=True)
    facts = {
        "command": "python -m benchmarks.peers",
        "commit": commit.stdout.strip(),
        "machine": describe_machine(),
        "versions": versions(),
        "tokens": tokens,
        "ways": measured(original),
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
