"""Generation with a torch module in memory and the KV cache of transformers."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from mcpmq.runners.generation import Predictions
from mcpmq.runners.runner import Logits


def predict(module: nn.Module, arguments: Mapping[str, NDArray[Any]]) -> Predictions:
    """Yield the logits after the prompt, then those after every token that is sent.

    `arguments` are those of the module's forward, with a batch dimension of 1. The cache also holds the states of
    linear attention.
    """
    cache = DynamicCache(config=cast(Any, module.config).get_text_config())
    logits = _next_logits(module, cache, {name: torch.from_numpy(value) for name, value in arguments.items()})
    while True:
        token = yield logits
        logits = _next_logits(module, cache, {"input_ids": torch.tensor([[token]])})


def _next_logits(module: nn.Module, cache: DynamicCache, arguments: Mapping[str, Tensor]) -> Logits:
    with torch.inference_mode():
        output = module(**arguments, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Logits = output.logits[0, -1].float().numpy()
    return logits
