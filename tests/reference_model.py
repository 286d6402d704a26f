"""Torch model with the dequantized weights of a quantized model: the reference for other engines."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_named
from mcpmq.families.inputs import Inputs
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel

ModelInputs = Callable[[Inputs], Mapping[str, NDArray[Any]]]


def reference_model(quantized: QuantizedModel) -> nn.Module:
    """Build the float32 model with the dequantized weights."""
    model = build_module(family_named(quantized.artifact.manifest.family), quantized.config)
    common_names = {name: spec.name for spec in quantized.specs.values() for name in spec.parameter_names}
    weights = {name: _weight(quantized, common_names[name]) for name, _ in model.named_parameters()}
    model.load_state_dict(weights, assign=True)
    return model


def _weight(quantized: QuantizedModel, name: str) -> Tensor:
    weight = quantized.load(name)
    values = dequantize(weight) if isinstance(weight, QTensor) else weight.float()
    return values.T if quantized.specs[name].transposed else values


def reference_losses(model: nn.Module, model_inputs: ModelInputs, inputs: Inputs) -> NDArray[np.float64]:
    """Compute the loss of each answer token, float64."""
    with torch.no_grad():
        logits = model(**_tensors(model_inputs(inputs))).logits[0].double()
    answer = torch.from_numpy(inputs.tokens[inputs.answer_start :])
    predicted = logits[inputs.answer_start - 1 : -1].log_softmax(-1)
    losses: NDArray[np.float64] = -predicted.gather(1, answer[:, None])[:, 0].numpy()
    return losses


def greedy_tokens(model: nn.Module, model_inputs: ModelInputs, inputs: Inputs, count: int) -> list[int]:
    """Generate `count` tokens after the prompt greedily, without a KV cache."""
    tokens = inputs.tokens[: inputs.answer_start]
    for _ in range(count):
        with torch.no_grad():
            logits = model(**_tensors(model_inputs(replace(inputs, tokens=tokens))), use_cache=False).logits
        tokens = np.append(tokens, int(logits[0, -1].argmax()))
    generated: list[int] = tokens[-count:].tolist()
    return generated


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
