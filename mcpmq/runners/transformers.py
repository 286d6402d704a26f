"""Run a Hugging Face artifact with transformers and the package of its format, with the whole model in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import transformers.modeling_utils
from numpy.typing import NDArray
from torch import nn

from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_named
from mcpmq.families.family import Family
from mcpmq.families.inputs import Inputs
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.runners.generation import Predictions, without_answer
from mcpmq.runners.runner import Metric, Result
from mcpmq.runners.torch_generation import predict

LOADERS = {"bnb": "bitsandbytes", "compressed-tensors": "compressed-tensors"}
CPU_KERNEL_BLOCK = (32, 64)  # out_features and in_features must be multiples for the bfloat16 kernel of bitsandbytes


@dataclass(frozen=True, slots=True)
class TransformersRunner:
    """A model in memory whose quantized layers are those of the loading package."""

    model: nn.Module
    arguments: Callable[[Inputs], Mapping[str, NDArray[Any]]]
    notes: tuple[str, ...]

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Yield `metric(sample, logits)` for each sample, in order."""
        for sample in samples:
            tensors = {name: torch.from_numpy(value) for name, value in self.arguments(sample).items()}
            positions = torch.from_numpy(sample.measured - 1)  # each predicts the next token
            with torch.inference_mode():
                logits = self.model(**tensors, logits_to_keep=positions, use_cache=False).logits[0]
            yield metric(sample, logits.float().numpy())

    def predict(self, sample: Inputs) -> Predictions:
        """Yield the logits after the prompt, then those after every token that is sent."""
        return predict(self.model, self.arguments(without_answer(sample)))


def open_runner(path: Path, threads: int) -> TransformersRunner:
    """Open a bnb or compressed-tensors artifact.

    Raises:
        ArtifactError: the artifact has another format.
    """
    torch.set_num_threads(threads)
    return load_artifact(HuggingFaceArtifact.open(path))


def load_artifact(artifact: HuggingFaceArtifact, dtype: torch.dtype | None = None) -> TransformersRunner:
    """Load an artifact with transformers, by default in the floating-point dtype of the original."""
    manifest = artifact.artifact.manifest
    family, loader = family_named(manifest.family), LOADERS[manifest.kind]
    empty = _empty_module(family, artifact.config)
    empty.config.quantization_config = dict(artifact.quantization_config)
    compute_dtype = getattr(torch, manifest.weights[0].dtype) if dtype is None else dtype
    model = type(empty).from_pretrained(artifact.artifact.path, config=empty.config, dtype=compute_dtype)
    dtype_name = str(compute_dtype).removeprefix("torch.")
    note = f"loaded by transformers and {loader} {version(loader)}, computed in {dtype_name}"
    model_inputs = family.open_processor(artifact.artifact.path).model_inputs
    return TransformersRunner(_without_unsupported_kernel(model), model_inputs, (note,))


def _empty_module(family: Family, config: Mapping[str, Any]) -> transformers.modeling_utils.PreTrainedModel:
    """Build the family's module without weights, for its class and configuration."""
    return cast(transformers.modeling_utils.PreTrainedModel, build_module(family, config))


def _without_unsupported_kernel(model: nn.Module) -> nn.Module:
    """Disable the bitsandbytes bfloat16 kernel for layers of sizes that it cannot compute."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        if layer.out_features % CPU_KERNEL_BLOCK[0] or layer.in_features % CPU_KERNEL_BLOCK[1]:
            layer.support_avx512bf16_for_cpu = False
    return model
