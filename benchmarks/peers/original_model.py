"""The whole original model in float32 with replaceable weights of the language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution.torch_model import TorchModel, build_model, to_float
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs

LANGUAGE_PREFIX = "llm."  # of the names in the checkpoint


@dataclass(frozen=True, slots=True)
class OriginalModel:
    """A checkpoint, its torch module with all weights, and its processor."""

    checkpoint: Checkpoint
    processor: Processor
    loaded: TorchModel

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load all weights of a checkpoint into memory."""
        checkpoint = Checkpoint.open(path)
        original = cls(
            checkpoint,
            checkpoint.family.open_processor(path),
            build_model(checkpoint.family, checkpoint.config, checkpoint.specs),
        )
        original.load_decoder({})
        return original

    @property
    def module(self) -> Any:
        return self.loaded.module

    def load_decoder(self, decoder: Mapping[str, Tensor]) -> None:
        """Load these weights of the language model, and the weights of the checkpoint for all others.

        Raises:
            ValueError: the module has no weight of that name.
        """
        replaced = {f"{LANGUAGE_PREFIX}{name}": value for name, value in decoder.items()}
        if unknown := sorted(replaced.keys() - {spec.hub_name for spec in self.checkpoint.specs}):
            raise ValueError(f"the model has no weight `{unknown[0]}`, and {len(unknown) - 1} others are unknown")
        for block in self.loaded.blocks:
            self.loaded.load_block(
                block,
                lambda spec: (
                    replaced[spec.hub_name] if spec.hub_name in replaced else to_float(self.checkpoint.load(spec), spec)
                ),
            )

    def encode(self, samples: SampleSet) -> list[Inputs]:
        """Encode samples with the processor of the family."""
        encode = self.processor.encode
        return [encode(sample.id, sample.image, sample.prompt, sample.answer) for sample in samples]

    @torch.inference_mode()
    def embeddings(self, sample: Inputs) -> Tensor:
        """Return the input of the language model, [1, tokens, hidden]; it does not depend on quantized weights."""
        inputs = {name: torch.from_numpy(value) for name, value in self.processor.model_inputs(sample).items()}
        embeddings: Tensor = self.module.get_input_embeddings()(inputs["input_ids"])
        if not sample.slices:
            return embeddings
        features = self.module.get_image_features(inputs["pixel_values"], inputs["target_sizes"])
        filled: Tensor = self.module.insert_features(embeddings, features, inputs["image_bound"])
        return filled

    @torch.inference_mode()
    def answer_logprobs(self, inputs: Sequence[Inputs], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Return float64 log-probabilities [answer tokens, vocabulary] of every sample with the present weights."""
        found = []
        for sample, embedded in zip(inputs, embeddings, strict=True):
            count = len(sample.tokens) - sample.answer_start
            logits = self.module(inputs_embeds=embedded, logits_to_keep=count + 1, use_cache=False).logits
            found.append(logits[0, :-1].double().log_softmax(-1))
        return found
