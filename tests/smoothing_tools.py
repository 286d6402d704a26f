"""Scales of any size moved in a whole model, and what it then says."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcpmq.execution import torch_model
from mcpmq.families.family import Fold, Inputs
from mcpmq.plan import Plan
from mcpmq.rounding.smoothing import Channels, Scales, Scaling


def drawn_scales(plan: Plan) -> list[Scales]:
    """For every place where scales may move, drawn once."""
    generator = torch.Generator().manual_seed(0)
    return [_drawn(plan, fold, generator) for folds in plan.folds.values() for fold in folds]


def _drawn(plan: Plan, fold: Fold, generator: torch.Generator) -> Scales:
    specs = {spec.name: spec for spec in plan.checkpoint.specs}
    count = specs[fold.source].shape[0] // fold.part[1]
    reader = specs[fold.into[0]]
    drawn = torch.randn(count, generator=generator).exp()
    channels = Channels(count, plan.checkpoint.architecture.language.head_width)
    return Scales(fold, 0.5, drawn, channels.spread(drawn, reader.shape[0 if reader.transposed else 1]))


def scaled_logits(plan: Plan, inputs: Sequence[Inputs], scaling: Mapping[str, Scaling]) -> list[Tensor]:
    """Of the plain model in float32, with its weights scaled: [tokens, vocabulary] for every sample."""
    checkpoint = plan.checkpoint
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.fill(
            block,
            lambda spec: torch_model.floats_of(scaling.get(spec.name, Scaling()).applied(checkpoint.load(spec)), spec),
        )
    arguments, found = checkpoint.family.processor(checkpoint.path).arguments, []
    for one in inputs:
        tensors = {name: torch.from_numpy(value) for name, value in arguments(one).items()}
        with torch.no_grad():
            found.append(model.module(**tensors, use_cache=False).logits[0])
    return found
