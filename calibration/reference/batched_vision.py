"""The vision tower on batches of equal slices, and the initialization of the resampler queries."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from calibration.reference.samples import QUERIES
from calibration.scene_labels import PATCHES
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration, sincos_2d


def patch_positions(table_side: int) -> Tensor:
    """Return the rows of the position table for the patches of one slice, int64 [64]."""
    steps = torch.arange(PATCHES) * table_side // PATCHES
    return (steps[:, None] * table_side + steps[None, :]).flatten()


def split_heads(states: Tensor, count: int) -> Tensor:
    """Reshape [slices, patches, channels] to [slices, count, patches, channels / count]."""
    by_head: Tensor = states.unflatten(-1, (count, -1))
    return by_head.transpose(1, 2)


def attend(layer: Any, states: Tensor, count: int) -> Tensor:
    """Apply the self-attention of the vision tower within each slice, [slices, patches, channels]."""
    query, key, value = (split_heads(project(states), count) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    mixed = functional.scaled_dot_product_attention(query, key, value)
    output: Tensor = layer.out_proj(mixed.transpose(1, 2).flatten(2))
    return output


def batched_features(model: MiniCPMVForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the image features of equal slices, [slices, 3, 112, 112] -> [slices, 16, hidden].

    Equal to `get_image_features`, and many times faster because slices are batched.
    """
    return run_resampler(model.resampler, patch_states(model, pixels))


def patch_states(model: MiniCPMVForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Run the vision tower on equal slices, [slices, 3, 112, 112] -> [slices, patches, channels]."""
    tower, table = model.vpm, model.vpm.embeddings
    states = table.patch_embedding(pixels).flatten(2).transpose(1, 2)
    states = states + table.position_embedding(patch_positions(table.num_patches_per_side))
    for layer in tower.encoder.layers:
        states = states + attend(layer.self_attn, layer.layer_norm1(states), layer.self_attn.num_heads)
        states = states + layer.mlp(layer.layer_norm2(states))
    normalized: Tensor = tower.post_layernorm(states)
    return normalized


def run_resampler(resampler: Any, states: Tensor) -> Tensor:
    """Run the resampler on equal slices, [slices, patches, channels] -> [slices, 16, hidden]."""
    value = resampler.ln_kv(resampler.kv_proj(states)).transpose(0, 1)
    place = sincos_2d(PATCHES, PATCHES, value.shape[-1], value.device, value.dtype)
    query = resampler.ln_q(resampler.query)[:, None].expand(-1, value.shape[1], -1)
    attended = resampler.attn(query, value + place[:, None], value, need_weights=False)[0]
    features: Tensor = resampler.ln_post(attended.transpose(0, 1)) @ resampler.proj
    return features


@torch.no_grad()
def init_query_grid(model: MiniCPMVForConditionalGeneration) -> None:
    """Initialize the queries as a 4 x 4 grid of positions with local attention, which training finds only slowly."""
    resampler = model.resampler
    channels = resampler.query.shape[1]
    grid = sincos_2d(PATCHES, PATCHES, channels, torch.device("cpu"), torch.float32)
    grid = grid.view(PATCHES // 2, 2, PATCHES // 2, 2, channels).mean(dim=(1, 3)).reshape(QUERIES, channels)
    resampler.query.copy_(grid)
    resampler.attn.in_proj_weight[: 2 * channels].normal_(0, 0.01)
    resampler.attn.in_proj_weight[: 2 * channels] += 2.2 * torch.eye(channels).repeat(2, 1)
    resampler.proj.copy_(0.5 * torch.eye(channels) + 0.02 * torch.randn(channels, channels))
    model.vpm.embeddings.position_embedding.weight.mul_(0.3)
