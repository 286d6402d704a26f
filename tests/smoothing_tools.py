"""A short search for scales, random scales for a whole model, and the logits of the model with scaled weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from mcpmq.execution import torch_model
from mcpmq.families.family import SmoothingMapping
from mcpmq.families.inputs import Inputs
from mcpmq.plan import Plan
from mcpmq.rounding.smoothing import EXPONENTS, Channels, SmoothingScales, WeightScaling


@contextmanager
def few_exponents(*exponents: float) -> Iterator[None]:
    """Search a few of the 19 exponents of AWQ, for tests in which the best exponent does not matter."""
    with patch.dict(EXPONENTS, {"awq": exponents or (0.2, 0.5, 0.8)}):
        yield


def random_scales(plan: Plan) -> list[SmoothingScales]:
    """Return random scales for every smoothing mapping of a plan."""
    generator = torch.Generator().manual_seed(0)
    mappings = (mapping for block in plan.smoothing_mappings.values() for mapping in block)
    return [_random_scale(plan, mapping, generator) for mapping in mappings]


def _random_scale(plan: Plan, mapping: SmoothingMapping, generator: torch.Generator) -> SmoothingScales:
    specs = {spec.name: spec for spec in plan.checkpoint.specs}
    count = specs[mapping.smooth_layer].shape[0] // mapping.row_chunk[1]
    layer = specs[mapping.balance_layers[0]]
    scale = torch.randn(count, generator=generator).exp()
    channels = Channels(count, plan.checkpoint.architecture.language.head_dim)
    return SmoothingScales(mapping, 0.5, scale, channels.expand(scale, layer.shape[0 if layer.transposed else 1]))


def scaled_logits(plan: Plan, inputs: Sequence[Inputs], scaling: Mapping[str, WeightScaling]) -> list[Tensor]:
    """Return the logits [tokens, vocabulary] of each sample in float32, with scaled weights."""
    checkpoint = plan.checkpoint
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.load_block(
            block,
            lambda spec: torch_model.to_float(
                scaling.get(spec.name, WeightScaling()).apply(checkpoint.load(spec)), spec
            ),
        )
    model_inputs, logits = checkpoint.family.open_processor(checkpoint.path).model_inputs, []
    for sample in inputs:
        tensors = {name: torch.from_numpy(value) for name, value in model_inputs(sample).items()}
        with torch.no_grad():
            logits.append(model.module(**tensors, use_cache=False).logits[0])
    return logits
