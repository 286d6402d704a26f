"""Compare mcpmq with AutoRound and GPTQModel: same model, same scheme, same calibration data.

python -m benchmarks.peers      installs the tools, quantizes all variants, writes benchmarks/results/peers.json

Artifacts in build/peers are reused; delete the folder to start over.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.commands import HELDOUT, STARTER, commit, write_result
from benchmarks.peers import text_checkpoint, unscaled_checkpoint
from benchmarks.peers.artifacts import (
    CHECKPOINTS,
    MODELS,
    OUTPUTS,
    SETS,
    VARIANTS,
    Variant,
    install_tool,
    quantize_variant,
    tool_versions,
)
from benchmarks.peers.decoders import DecoderWeights, read_mcpmq_decoder, read_peer_decoder
from benchmarks.peers.metrics import TokenDifferences, compare_logprobs, sample_groups, summarize
from benchmarks.peers.original_model import OriginalModel
from mcpmq.dataset import SampleSet
from mcpmq.system.environment import describe_machine, installed_versions

GROUPS = ("image", "text")
TOOLS = {"autoround": "auto-round", "gptqmodel": "GPTQModel"}


def write_inputs() -> dict[str, int]:
    """Write the calibration sets of mcpmq and the checkpoints of the text-only tools; return the tokens per set."""
    SETS.mkdir(parents=True, exist_ok=True)
    if not (SETS / "images").is_symlink():
        (SETS / "images").symlink_to(STARTER)
    text_checkpoint.write_text_only_set(STARTER, SETS / "text")
    unscaled_checkpoint.write_unscaled(MODELS["reference"], MODELS["unscaled"])
    tokens = {}
    for model, folder in MODELS.items():
        original = OriginalModel.open(folder)
        for data in ("images", "text"):
            ids = text_checkpoint.write_text_checkpoint(
                original, SampleSet.open(SETS / data), CHECKPOINTS / model / data
            )
            tokens[data] = sum(map(len, ids))
    return tokens


def read_decoder(variant: Variant) -> DecoderWeights:
    """Return the dequantized layers of the language model."""
    folder = OUTPUTS / variant.name
    if variant.tool == "mcpmq":
        return read_mcpmq_decoder(folder)
    return read_peer_decoder(next(folder.rglob("config.json")).parent)


def measure_variants(model: str) -> Iterator[dict[str, object]]:
    """Yield the metrics of every variant of a model against the original, on the held-out answers."""
    original, samples = OriginalModel.open(MODELS[model]), SampleSet.open(HELDOUT)
    inputs, groups, first = original.encode(samples), sample_groups(samples), None
    embeddings = [original.embeddings(sample) for sample in inputs]
    before = original.answer_logprobs(inputs, embeddings)
    for variant in (one for one in VARIANTS if one.model == model):
        decoder, cost = read_decoder(variant), asdict(quantize_variant(variant))
        original.load_decoder(decoder.weights)
        differences = compare_logprobs(before, original.answer_logprobs(inputs, embeddings), inputs)
        first = first or differences
        metrics = {name: _metrics(differences, first, [group == name for group in groups]) for name in GROUPS}
        yield asdict(variant) | {"bits_per_weight": decoder.bits_per_weight, "cost": cost, "groups": metrics}


def _metrics(differences: TokenDifferences, baseline: TokenDifferences, chosen: list[bool]) -> dict[str, object]:
    return {name: estimate.model_dump() for name, estimate in summarize(differences, baseline, chosen).items()}


def versions() -> dict[str, dict[str, str]]:
    """Return the versions of the relevant packages in every environment."""
    found = {"mcpmq": installed_versions(("mcpmq", "torch", "transformers"))}
    return found | {tool: tool_versions(tool, (package, "torch", "transformers")) for tool, package in TOOLS.items()}


def main() -> None:
    """Install the tools, quantize and measure all variants, and record the result."""
    tokens = write_inputs()
    for tool in TOOLS:
        install_tool(tool)
    for variant in sorted(VARIANTS, key=lambda variant: int(str(variant.options.get("iters", 0)))):  # slow ones last
        print(f"{variant.name}: {quantize_variant(variant).processor_seconds:.1f} processor seconds", flush=True)
    result = {
        "command": "python -m benchmarks.peers",
        "commit": commit(),
        "machine": describe_machine(),
        "versions": versions(),
        "tokens": tokens,
        "variants": [variant for model in MODELS for variant in measure_variants(model)],
    }
    write_result("peers", result)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
