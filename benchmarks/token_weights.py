"""Evaluate weights of image, prompt and answer tokens in the calibration of the language model.

python -m benchmarks.token_weights

Only the matrices of the language model are quantized, by GPTQ with the whole starter set; every artifact is evaluated
in llama.cpp against the original on the held-out set.
"""

import argparse
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.commands import REFERENCE, STARTER, WORK, evaluate, provenance, run_command, write_result
from benchmarks.methods import group_metrics

TOKEN_WEIGHTS_WORK = WORK / "token-weights"
SCHEMES = ("int4-g32", "q4_k")
WEIGHTS = ((1, 1, 1), (0.3, 1, 1), (0.1, 1, 1), (0, 1, 1), (3, 1, 1), (1, 1, 3), (1, 1, 10), (0.3, 1, 3))


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """One scheme and the weight of a token of each modality."""

    scheme: str
    vision: float
    text: float
    answer: float

    @property
    def name(self) -> str:
        """`q4_k-0.3-1-1`"""
        return f"{self.scheme}-{self.vision:g}-{self.text:g}-{self.answer:g}"

    def recipe(self) -> str:
        """Return the TOML text."""
        weights = [f"vision = {self.vision}", f"text = {self.text}", f"answer = {self.answer}"]
        lines = [f'name = "{self.name}"', 'method = "gptq"', "[token_weights]", *weights]
        return "\n".join([*lines, "[weights]", f'"language.*" = "{self.scheme}"', ""])


def build_artifact(weights: TokenWeights) -> Path:
    """Write the GGUF artifact."""
    recipe, codes, out = (TOKEN_WEIGHTS_WORK / f"{weights.name}{suffix}" for suffix in (".toml", "", ".gguf"))
    recipe.write_text(weights.recipe())
    options = ("--recipe", recipe, "--calibration", STARTER, "--device", "cpu")
    run_command("quantize", REFERENCE, codes, *options, out=codes)
    run_command("export", codes, out, "--format", "gguf", out=out)
    return out


def main() -> None:
    """Build all artifacts, evaluate them in one run, and record the metrics."""
    shutil.rmtree(TOKEN_WEIGHTS_WORK, ignore_errors=True)
    TOKEN_WEIGHTS_WORK.mkdir(parents=True)
    variants = [TokenWeights(scheme, *weights) for scheme in SCHEMES for weights in WEIGHTS]
    report = evaluate(map(build_artifact, variants), TOKEN_WEIGHTS_WORK / "report")
    rows = [
        asdict(weights) | {"groups": group_metrics(result.differences)}
        for weights, result in zip(variants, report.artifacts, strict=True)
    ]
    write_result("token-weights", provenance("benchmarks.token_weights") | {"rows": rows})


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
