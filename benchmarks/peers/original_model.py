"""The original, held whole in float32, and the held-out answers it gives with its own or with other weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution.torch_model import NativeModel, build, floats_of
from mcpmq.families.family import Inputs, Processor

PREFIX = "llm."  # of the language model inside the checkpoint


@dataclass(frozen=True, slots=True)
class Original:
    """A checkpoint, its native module with all weights, and what turns samples into its inputs."""

    checkpoint: Checkpoint
    processor: Processor
    native: NativeModel

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a checkpoint small enough to be held whole."""
        checkpoint = Checkpoint.open(path)
        original = cls(
            checkpoint,
            checkpoint.family.processor(path),
            build(checkpoint.family, checkpoint.config, checkpoint.specs),
        )
        original.wear({})
        return original

    @property
    def module(self) -> Any:
        return self.native.module

    def wear(self, decoder: Mapping[str, Tensor]) -> None:
        """Give the module these weights of its language model, and its own where there are none.

        Raises:
            ValueError: a weight has no place in the module.
        """
        worn = {f"{PREFIX}{name}": value for name, value in decoder.items()}
        if strange := sorted(worn.keys() - {spec.hub_name for spec in self.checkpoint.specs}):
            raise ValueError(f"{len(strange)} weights have no place, first {strange[0]}")
        for block in self.native.blocks:
            self.native.fill(
                block,
                lambda spec: (
                    worn[spec.hub_name] if spec.hub_name in worn else floats_of(self.checkpoint.load(spec), spec)
                ),
            )

    def inputs(self, samples: CalibrationSet) -> list[Inputs]:
        """The samples, encoded as mcpmq does."""
        encode = self.processor.encode
        return [encode(sample.id, sample.image, sample.prompt, sample.answer) for sample in samples]

    @torch.inference_mode()
    def embeddings(self, sample: Inputs) -> Tensor:
        """What the language model is fed, [1, tokens, hidden]: nothing that is quantized here has a part in it."""
        given = {name: torch.from_numpy(value) for name, value in self.processor.arguments(sample).items()}
        embeddings = self.module.get_input_embeddings()(given["input_ids"])
        if not sample.slices:
            return embeddings
        features = self.module.get_image_features(given["pixel_values"], given["target_sizes"])
        return self.module.place_images(embeddings, features, given["image_bound"])

    @torch.inference_mode()
    def answers(self, inputs: Sequence[Inputs], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Log-probabilities, float64 [answer tokens, vocabulary], of every sample, with the weights as they are."""
        found = []
        for sample, embedded in zip(inputs, embeddings, strict=True):
            count = len(sample.tokens) - sample.answer_start
            logits = self.module(inputs_embeds=embedded, logits_to_keep=count + 1, use_cache=False).logits
            found.append(logits[0, :-1].double().log_softmax(-1))
        return found
