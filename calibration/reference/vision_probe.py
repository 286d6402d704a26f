"""Pretraining of the vision tower: batched slices, initialization of the resampler queries, and a probe for labels."""

import string
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.drawing import COLORS, SHAPES, SIZES, SceneObject
from calibration.reference.samples import QUERIES, SLICE
from calibration.scenes import Scene
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration, sincos_2d

PATCHES = SLICE // 14
CHARACTERS = ":." + string.digits + string.ascii_uppercase
REGION_SLOTS = 3
BAR_SLOTS = 4
OBJECT_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1)


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


def object_label(item: SceneObject | None) -> tuple[int, int, int]:
    """Return shape, color and size as class numbers; 0 for no object."""
    if item is None:
        return 0, 0, 0
    shape, color, size = SHAPES.index(item.shape), list(COLORS).index(item.color), list(SIZES).index(item.size)
    return shape + 1, color + 1, size + 1


def patch_label(scene: Scene) -> list[int]:
    """Return the class number of the character at the center of every patch; 0 for no character."""
    label = [0] * PATCHES**2
    for glyph in scene.labels.glyphs:
        row, column = (min(PATCHES - 1, max(0, int(value / 14))) for value in (glyph.y, glyph.x))
        label[row * PATCHES + column] = CHARACTERS.index(glyph.character) + 1
    return label


def region_label(scene: Scene) -> list[list[int]]:
    """Return the first characters of every region of 2 x 2 patches from left to right, padded with 0."""
    label: list[list[int]] = [[] for _ in range(QUERIES)]
    for glyph in scene.labels.glyphs:
        row, column = (min(PATCHES // 2 - 1, max(0, int(value / 28))) for value in (glyph.y, glyph.x))
        label[row * (PATCHES // 2) + column].append(CHARACTERS.index(glyph.character) + 1)
    return [(region + [0] * REGION_SLOTS)[:REGION_SLOTS] for region in label]


class VisionProbe(nn.Module):
    """Predicts characters by patch and region, objects by quarter, counts and bar heights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1 + BAR_SLOTS, channels) * 0.5)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.object_head = nn.Linear(channels, sum(OBJECT_CLASSES))
        self.patch_head = nn.Linear(channels, len(CHARACTERS) + 1)
        self.region_head = nn.Linear(channels, REGION_SLOTS * (len(CHARACTERS) + 1))
        self.number_head = nn.Linear(channels, 10)

    def forward(self, states: Tensor, features: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Return the cross-entropy of each kind of label for patch states and features of scenes."""
        patches = torch.tensor([patch_label(scene) for scene in scenes])
        regions = torch.tensor([region_label(scene) for scene in scenes])
        return {
            "objects": self.object_loss(features, scenes),
            "patches": sparse_class_loss(self.patch_head(states), patches),
            "regions": sparse_class_loss(self.region_head(features).unflatten(-1, (REGION_SLOTS, -1)), regions),
            "numbers": self.number_loss(features, scenes),
        }

    def object_loss(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """Return the loss of shape, color and size of the object in each quarter."""
        quarters = features.view(-1, 2, 2, 2, 2, features.shape[-1]).mean(dim=(2, 4)).flatten(1, 2)
        parts = self.object_head(quarters).split(OBJECT_CLASSES, dim=-1)
        truth = torch.tensor([[object_label(item) for item in scene.labels.objects] for scene in scenes])
        return torch.stack([class_loss(part, truth[..., index]) for index, part in enumerate(parts)]).sum()

    def number_loss(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """Return the loss of counts and bar heights."""
        queries = self.queries.expand(len(scenes), -1, -1)
        states = queries + self.attention(queries, features, features, need_weights=False)[0]
        return class_loss(self.number_head(states), torch.tensor([number_label(scene) for scene in scenes]))


def number_label(scene: Scene) -> list[int]:
    """Return the count and the bar heights, padded with 0."""
    bars = scene.labels.bars
    return [scene.labels.count, *bars, *[0] * (BAR_SLOTS - len(bars))]


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [..., classes] for class numbers [...]."""
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


def sparse_class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean loss of nonzero labels plus that of zero labels, because most labels are zero."""
    nonzero = truth > 0
    return class_loss(logits[nonzero], truth[nonzero]) + class_loss(logits[~nonzero], truth[~nonzero])
