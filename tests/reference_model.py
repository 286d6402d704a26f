"""The native torch model with the weights of a quantized artifact, dequantized: what other engines must agree with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcpmq.execution.torch_model import module_of
from mcpmq.families import family_named
from mcpmq.families.family import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import build
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized


def native_model(quantized: Quantized) -> nn.Module:
    """A float32 model that computes with exactly the weights of the artifact."""
    return _filled(build(quantized.config), quantized)


def native_module(quantized: Quantized) -> nn.Module:
    """The same for any family."""
    return _filled(module_of(family_named(quantized.artifact.manifest.family), quantized.config), quantized)


def _filled(model: nn.Module, quantized: Quantized) -> nn.Module:
    named = {name: spec.name for spec in quantized.specs.values() for name in spec.parameters}
    weights = {name: _weight(quantized, named[name]) for name, _ in model.named_parameters()}
    model.load_state_dict(weights, assign=True)
    return model


def _weight(quantized: Quantized, name: str) -> Tensor:
    weight = quantized.load(name)
    values = dequantize(weight) if isinstance(weight, QTensor) else weight.float()
    return values.T if quantized.specs[name].transposed else values


def native_losses(model: nn.Module, processor: MiniCpmVProcessor, inputs: Inputs) -> NDArray[np.float64]:
    """The loss of every answer token, float64."""
    with torch.no_grad():
        logits = model(**_tensors(processor, inputs)).logits[0].double()
    answer = torch.from_numpy(inputs.tokens[inputs.answer_start :])
    predicted = logits[inputs.answer_start - 1 : -1].log_softmax(-1)
    return -predicted.gather(1, answer[:, None])[:, 0].numpy()


def native_continuation(model: nn.Module, processor: MiniCpmVProcessor, inputs: Inputs, count: int) -> list[int]:
    """The likeliest next token after the prompt, `count` times, every time from the beginning: no cache."""
    return continuation(model, processor.arguments, inputs, count)


def continuation(
    model: nn.Module, arguments: Callable[[Inputs], Mapping[str, NDArray[Any]]], inputs: Inputs, count: int
) -> list[int]:
    """The same for any family."""
    tokens = inputs.tokens[: inputs.answer_start]
    for _ in range(count):
        sample = replace(inputs, tokens=tokens)
        tensors = {name: torch.from_numpy(value) for name, value in arguments(sample).items()}
        with torch.no_grad():
            logits = model(**tensors, use_cache=False).logits
        tokens = np.append(tokens, int(logits[0, -1].argmax()))
    return tokens[-count:].tolist()


def _tensors(processor: MiniCpmVProcessor, inputs: Inputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in processor.arguments(inputs).items()}
