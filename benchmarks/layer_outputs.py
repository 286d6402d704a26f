"""Compare the kernels for ggml's block types with ggml's searches, without importance, by the errors of layer outputs.

python -m benchmarks.layer_outputs CHECKPOINT           prints the table
python -m benchmarks.layer_outputs CHECKPOINT --write   also writes layer-outputs.json

CHECKPOINT is a text model in the layout of Llama with `tokens.json`, as benchmarks.real_weights writes it to
build/real-weights/checkpoints/llama. Errors are relative square errors of the outputs of every seventh layer: for the
inputs that the text gives, and for random inputs with independent values of equal size, where it is the error of the
weights. The third one is the error of the weights by which ggml's search chooses, which counts large weights more.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.commands import provenance, write_result
from mcpmq.grids import ggml
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

SEQUENCES, TOKENS, LAYER_STEP = 6, 512, 7
BY_MEAN = ("q4_1", "q4_k", "q5_k")  # types whose search weights errors by |x| + the root mean square of its group


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """Geometric means over matrices of relative square errors."""

    scheme: str
    search: str
    text_inputs: float
    random_inputs: float
    by_magnitude: float


def collect_grams(model: Any, tokens: list[list[int]]) -> dict[str, Tensor]:
    """Return the sum of the outer products of the inputs of every seventh layer's matrices, by name."""
    layers = {f".{number}." for number in range(0, model.config.num_hidden_layers, LAYER_STEP)}
    linears = {name: one for name, one in model.model.named_modules() if isinstance(one, nn.Linear)}
    chosen = {name: one for name, one in linears.items() if any(layer in name for layer in layers)}
    grams = {name: torch.zeros(one.in_features, one.in_features) for name, one in chosen.items()}
    for name, linear in chosen.items():
        linear.register_forward_pre_hook(partial(_add_gram, grams[name]))
    with torch.inference_mode():
        for sequence in tokens:
            model.model(torch.tensor([sequence[:TOKENS]]))
    return grams


def _add_gram(gram: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> None:
    gram += inputs[0][0].T @ inputs[0][0]


def matrix_errors(weight: Tensor, gram: Tensor, scheme: GgmlScheme) -> tuple[float, float, float]:
    """Return the relative square errors of one matrix: for text inputs, for random inputs, and weighted as by ggml."""
    change, sizes = ggml.dequantize(ggml.quantize(weight, scheme)) - weight, magnitudes(weight, scheme.name)
    return (
        float(((change @ gram) * change).sum() / ((weight @ gram) * weight).sum()),
        float(change.square().sum() / weight.square().sum()),
        float((change.square() * sizes).sum() / (weight.square() * sizes).sum()),
    )


def magnitudes(weight: Tensor, name: str) -> Tensor:
    """Return the weights of errors in ggml's search: x^2, or |x| plus the root mean square of 32 columns."""
    if name not in BY_MEAN:
        return weight.square()
    groups = weight.reshape(len(weight), -1, 32)
    return (groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()).reshape(weight.shape)


def compare(model: Any, grams: dict[str, Tensor]) -> Iterator[OutputErrors]:
    """Yield the errors of both searches for all types."""
    matrices = {name: model.model.get_submodule(name).weight.detach().float() for name in grams}
    for name in GGML_BLOCKS:
        for search in ("mcpmq", "ggml"):
            scheme = GgmlScheme(name, search)
            rows = [matrix_errors(matrices[matrix], gram, scheme) for matrix, gram in grams.items()]
            yield OutputErrors(name, search, *torch.tensor(rows, dtype=torch.float64).log().mean(0).exp().tolist())


def main() -> None:
    """Print the errors, and write them on request."""
    from transformers import LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    tokens = json.loads((arguments.checkpoint / "tokens.json").read_text())[:SEQUENCES]
    found = []
    for errors in compare(model, collect_grams(model, tokens)):
        found.append(asdict(errors))
        print(" ".join(str(value) for value in found[-1].values()), flush=True)
    if arguments.write:
        result = provenance("benchmarks.layer_outputs", "gguf", "xllamacpp", "numba", "transformers")
        write_result("layer-outputs", result | {"errors": found})


if __name__ == "__main__":
    main()
