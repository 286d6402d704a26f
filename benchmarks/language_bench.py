"""The language model of the reference checkpoint in float32: its answers with any weights, and its input statistics."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.commands import ROOT
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import Settings, encode_samples
from mcpmq.execution.torch_model import build_model, to_float
from mcpmq.grids import dequantize
from mcpmq.plan import TensorPlan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.rounding.stats import InputStats

CALIBRATION_DATA = ROOT / "calibration"
BATCH_TOKENS = 4096

Weights = Mapping[TensorPlan, Tensor]
Stats = dict[TensorPlan, InputStats]


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as input of the language model: embeddings [tokens, hidden]; the last tokens are the answer."""

    embeddings: Tensor
    answer: Tensor
    group: str


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Loss and KL divergence from the original of every answer token, in the order of the samples."""

    losses: NDArray[np.float64]
    kl_divergences: NDArray[np.float64]


class LanguageModelBench:
    """The whole reference checkpoint in float32, with replaceable matrices of the language model."""

    def __init__(self, recipe: str) -> None:
        self.checkpoint = Checkpoint.open(CALIBRATION_DATA / "reference")
        torch_model = build_model(self.checkpoint.family, self.checkpoint.config, self.checkpoint.specs)
        for block in torch_model.blocks:
            torch_model.load_block(block, lambda spec: to_float(self.checkpoint.load(spec), spec))
        self.module: Any = torch_model.module
        named = dict(self.module.named_modules())
        plan = make_plan(self.checkpoint, Recipe.load(recipe))
        tensors = [one for one in plan.tensors if one.spec.component == "language" and one.spec.role == "matrix"]
        self.linears = {tensor: named[tensor.spec.hub_name.removesuffix(".weight")] for tensor in tensors}
        self.original_weights = {tensor: linear.weight.detach().clone() for tensor, linear in self.linears.items()}

    def encode_samples(self, name: str) -> list[EncodedSample]:
        """Encode a set with the vision tower of the original."""
        model_inputs, samples = self.checkpoint.family.open_processor(self.checkpoint.path).model_inputs, []
        with encode_samples(self.checkpoint, SampleSet.open(CALIBRATION_DATA / name), Settings(threads=1)) as inputs:
            for sample, group in zip(inputs.store, inputs.groups, strict=True):
                tensors = {key: torch.from_numpy(value) for key, value in model_inputs(sample).items()}
                answer = torch.from_numpy(sample.tokens[sample.answer_start :])
                samples.append(EncodedSample(self._embeddings(tensors), answer, group))
        return samples

    def _embeddings(self, tensors: Mapping[str, Tensor]) -> Tensor:
        captured: list[Tensor] = []
        handle = self.module.llm.model.register_forward_pre_hook(
            lambda _, __, named: captured.append(named["inputs_embeds"][0]), with_kwargs=True
        )
        with handle:
            self.module(**tensors, logits_to_keep=1, use_cache=False)
        return captured[0]

    def answer_logprobs(self, samples: list[EncodedSample]) -> Tensor:
        """Return the log-probabilities of all answer tokens, by sample, float64 [tokens, vocabulary]."""
        rows: dict[int, Tensor] = {}
        for batch in _batches(samples):
            padded = nn.utils.rnn.pad_sequence([samples[index].embeddings for index in batch], batch_first=True)
            states = self.module.llm.model(inputs_embeds=padded, use_cache=False).last_hidden_state
            for row, index in enumerate(batch):
                length, count = len(samples[index].embeddings), len(samples[index].answer)
                rows[index] = states[row, length - count - 1 : length - 1]
        logits = self.module.llm.lm_head(torch.cat([rows[index] for index in range(len(samples))]))
        logprobs: Tensor = logits.double().log_softmax(-1)
        return logprobs

    def measure(self, samples: list[EncodedSample], original: Tensor) -> TokenLosses:
        """Return the losses with the present weights; `original` has the log-probabilities of the original."""
        logprobs = self.answer_logprobs(samples)
        truth = torch.cat([sample.answer for sample in samples])
        losses = -logprobs.gather(1, truth[:, None])[:, 0]
        return TokenLosses(losses.numpy(), (original.exp() * (original - logprobs)).sum(-1).numpy())

    def collect_statistics(self, samples: list[EncodedSample], parts: int) -> list[Stats]:
        """Return the input statistics of every linear layer for each of `parts` interleaved parts of the samples."""
        return [self._statistics(samples[part::parts]) for part in range(parts)]

    def _statistics(self, samples: list[EncodedSample]) -> Stats:
        grams, handles = {}, []
        for tensor, linear in self.linears.items():
            grams[tensor] = torch.zeros(linear.in_features, linear.in_features)

            def add(_: nn.Module, args: tuple[Tensor, ...], gram: Tensor = grams[tensor]) -> None:
                gram.addmm_(args[0][0].T, args[0][0])

            handles.append(linear.register_forward_pre_hook(add))
        for sample in samples:
            self.module.llm.model(inputs_embeds=sample.embeddings[None], use_cache=False)
        for handle in handles:
            handle.remove()
        tokens = sum(len(sample.embeddings) for sample in samples)
        return {tensor: _gram_stats(gram, tokens) for tensor, gram in grams.items()}

    def requantize(self, statistics: list[Stats]) -> dict[TensorPlan, Tensor]:
        """Return the matrices quantized by GPTQ with the sum of these statistics, dequantized."""
        built = {}
        for tensor, weight in self.original_weights.items():
            stats = statistics[0][tensor]
            for other in statistics[1:]:
                stats += other[tensor]
            scheme: Any = tensor.scheme
            built[tensor] = dequantize(ROUNDING_FUNCTIONS["gptq"](weight, scheme, stats))
        return built

    def set_weights(self, weights: Weights) -> None:
        """Replace the matrices of the language model."""
        for tensor, linear in self.linears.items():
            linear.weight.data = weights[tensor]


def _gram_stats(gram: Tensor, tokens: int) -> InputStats:
    """GPTQ reads the Gram matrix only; the other statistics are placeholders."""
    counts = {"vision": 0, "text": tokens, "answer": 0}
    columns = gram.diagonal()
    return InputStats(gram, columns, columns, columns, counts, float(tokens))


def _batches(samples: list[EncodedSample]) -> Iterator[list[int]]:
    """Yield indexes of samples of similar length, at most BATCH_TOKENS tokens with padding."""
    order, batch = sorted(range(len(samples)), key=lambda index: len(samples[index].embeddings)), list[int]()
    for index in order:
        if batch and (len(batch) + 1) * len(samples[index].embeddings) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch
