"""A Hugging Face artifact, loaded whole by transformers and the package that its format belongs to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import transformers.modeling_utils
from numpy.typing import NDArray
from torch import nn

from mcpmq.execution.torch_model import module_of
from mcpmq.families import family_named
from mcpmq.families.family import Family, Inputs
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.runners.runner import Judge, Result

READERS = {"bnb": "bitsandbytes", "compressed-tensors": "compressed-tensors"}
CPU_BLOCK = (32, 64)  # outputs and inputs that bitsandbytes' own bfloat16 kernel takes at a time


@dataclass(frozen=True, slots=True)
class TransformersRunner:
    """A whole model in memory, its packed layers those of the reader."""

    model: nn.Module
    arguments: Callable[[Inputs], Mapping[str, NDArray[Any]]]
    notes: tuple[str, ...]

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of the logits of its answer."""
        for sample in samples:
            tensors = {name: torch.from_numpy(value) for name, value in self.arguments(sample).items()}
            # The token before predicts: the head is wanted at these positions only.
            positions = torch.arange(sample.answer_start - 1, len(sample.tokens) - 1)
            with torch.inference_mode():
                logits = self.model(**tensors, logits_to_keep=positions, use_cache=False).logits[0]
            yield judge(sample, logits.float().numpy())


def open_runner(path: Path, threads: int) -> TransformersRunner:
    """Open a folder that `export` wrote as bnb or compressed-tensors.

    Raises:
        ArtifactError: it is another kind of artifact.
    """
    torch.set_num_threads(threads)
    return load(HuggingFaceArtifact.open(path))


def load(opened: HuggingFaceArtifact, dtype: torch.dtype | None = None) -> TransformersRunner:
    """Let transformers load an artifact whole, by default in the type of floats that the original has."""
    manifest = opened.artifact.manifest
    family, reader = family_named(manifest.family), READERS[manifest.kind]
    empty = _empty(family, opened.config)
    empty.config.quantization_config = dict(opened.settings)
    held = getattr(torch, manifest.weights[0].dtype) if dtype is None else dtype
    model = type(empty).from_pretrained(opened.artifact.path, config=empty.config, dtype=held)
    computed = str(held).removeprefix("torch.")
    note = f"loaded by transformers and {reader} {version(reader)}, computed in {computed}"
    return TransformersRunner(_usable(model), family.processor(opened.artifact.path).arguments, (note,))


def _empty(family: Family, config: Mapping[str, Any]) -> transformers.modeling_utils.PreTrainedModel:
    """The family's native module without weights: its class and its configuration are wanted."""
    return cast(transformers.modeling_utils.PreTrainedModel, module_of(family, config))


def _usable(model: nn.Module) -> nn.Module:
    """Keep bitsandbytes from repacking, for its own kernel, layers that this kernel cannot compute."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        if layer.out_features % CPU_BLOCK[0] or layer.in_features % CPU_BLOCK[1]:
            layer.support_avx512bf16_for_cpu = False
    return model
