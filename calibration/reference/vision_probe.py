"""How the vision tower learns to see before it has words: batched slices, a local start, an examiner."""

import string

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.drawing import COLORS, SHAPES, SIZES, Thing
from calibration.reference.samples import QUERIES, SLICE
from calibration.scenes import Scene
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration, position_code

PATCHES = SLICE // 14
CHARACTERS = ":." + string.digits + string.ascii_uppercase
REGION_SLOTS = 3
BAR_SLOTS = 4
THING_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1)


def patch_positions(table_side: int) -> Tensor:
    """Rows of the position table that the patches of one slice use: int64 [64]."""
    steps = torch.arange(PATCHES) * table_side // PATCHES
    return (steps[:, None] * table_side + steps[None, :]).flatten()


def heads(states: Tensor, count: int) -> Tensor:
    """[slices, patches, channels] -> [slices, count, patches, channels / count]."""
    return states.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(layer: nn.Module, states: Tensor, count: int) -> Tensor:
    """Self-attention of the vision tower within each slice, [slices, patches, channels]."""
    query, key, value = (heads(project(states), count) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return layer.out_proj(mixed.transpose(1, 2).flatten(2))


def batched_features(model: MiniCPMVForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The model's image features of equal slices, [slices, 3, 112, 112] -> [slices, 16, hidden].

    The same function as `get_image_features`, many times faster because slices run side by side.
    """
    return resample(model.resampler, patch_states(model, pixels))


def patch_states(model: MiniCPMVForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The vision tower over equal slices, [slices, 3, 112, 112] -> [slices, patches, channels]."""
    tower, table = model.vpm, model.vpm.embeddings
    states = table.patch_embedding(pixels).flatten(2).transpose(1, 2)
    states = states + table.position_embedding(patch_positions(table.num_patches_per_side))
    for layer in tower.encoder.layers:
        states = states + attend(layer.self_attn, layer.layer_norm1(states), layer.self_attn.num_heads)
        states = states + layer.mlp(layer.layer_norm2(states))
    seen: Tensor = tower.post_layernorm(states)
    return seen


def resample(resampler: nn.Module, states: Tensor) -> Tensor:
    """The resampler over equal slices, [slices, patches, channels] -> [slices, 16, hidden]."""
    value = resampler.ln_kv(resampler.kv_proj(states)).transpose(0, 1)
    place = position_code(PATCHES, PATCHES, value.shape[-1], value.device, value.dtype)
    query = resampler.ln_q(resampler.query)[:, None].expand(-1, value.shape[1], -1)
    seen = resampler.attn(query, value + place[:, None], value, need_weights=False)[0]
    return resampler.ln_post(seen.transpose(0, 1)) @ resampler.proj


@torch.no_grad()
def start_locally(model: MiniCPMVForConditionalGeneration) -> None:
    """Queries begin as a 4 x 4 grid of places that look at their surroundings; learning that takes very long."""
    resampler = model.resampler
    channels = resampler.query.shape[1]
    grid = position_code(PATCHES, PATCHES, channels, torch.device("cpu"), torch.float32)
    grid = grid.view(PATCHES // 2, 2, PATCHES // 2, 2, channels).mean(dim=(1, 3)).reshape(QUERIES, channels)
    resampler.query.copy_(grid)
    resampler.attn.in_proj_weight[: 2 * channels].normal_(0, 0.01)
    resampler.attn.in_proj_weight[: 2 * channels] += 2.2 * torch.eye(channels).repeat(2, 1)
    resampler.proj.copy_(0.5 * torch.eye(channels) + 0.02 * torch.randn(channels, channels))
    model.vpm.embeddings.position_embedding.weight.mul_(0.3)


def thing_label(thing: Thing | None) -> tuple[int, int, int]:
    """Shape, colour and size as class numbers; 0 is nothing."""
    if thing is None:
        return 0, 0, 0
    shape, color, size = SHAPES.index(thing.shape), list(COLORS).index(thing.color), list(SIZES).index(thing.size)
    return shape + 1, color + 1, size + 1


def patch_label(scene: Scene) -> list[int]:
    """The character in the middle of every patch as a class number; 0 is none."""
    label = [0] * PATCHES**2
    for glyph in scene.labels.glyphs:
        row, column = (min(PATCHES - 1, max(0, int(value / 14))) for value in (glyph.y, glyph.x))
        label[row * PATCHES + column] = CHARACTERS.index(glyph.character) + 1
    return label


def region_label(scene: Scene) -> list[list[int]]:
    """The first characters, from left to right, of every region of 2 x 2 patches; 0 after the last."""
    label: list[list[int]] = [[] for _ in range(QUERIES)]
    for glyph in scene.labels.glyphs:
        row, column = (min(PATCHES // 2 - 1, max(0, int(value / 28))) for value in (glyph.y, glyph.x))
        label[row * (PATCHES // 2) + column].append(CHARACTERS.index(glyph.character) + 1)
    return [(region + [0] * REGION_SLOTS)[:REGION_SLOTS] for region in label]


class Examiner(nn.Module):
    """Asks what is drawn: characters by patch and by region, things by quarter, a count, heights of bars."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.questions = nn.Parameter(torch.randn(1 + BAR_SLOTS, channels) * 0.5)
        self.look = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.things = nn.Linear(channels, sum(THING_CLASSES))
        self.patches = nn.Linear(channels, len(CHARACTERS) + 1)
        self.regions = nn.Linear(channels, REGION_SLOTS * (len(CHARACTERS) + 1))
        self.numbers = nn.Linear(channels, 10)

    def forward(self, states: Tensor, features: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Patch states and features of scenes -> cross-entropy of each kind of question."""
        patches = torch.tensor([patch_label(scene) for scene in scenes])
        regions = torch.tensor([region_label(scene) for scene in scenes])
        return {
            "things": self.ask_things(features, scenes),
            "patches": rare_choice(self.patches(states), patches),
            "regions": rare_choice(self.regions(features).unflatten(-1, (REGION_SLOTS, -1)), regions),
            "numbers": self.ask_numbers(features, scenes),
        }

    def ask_things(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """Shape, colour and size of what is in each quarter."""
        quarters = features.view(-1, 2, 2, 2, 2, features.shape[-1]).mean(dim=(2, 4)).flatten(1, 2)
        parts = self.things(quarters).split(THING_CLASSES, dim=-1)
        truth = torch.tensor([[thing_label(thing) for thing in scene.labels.things] for scene in scenes])
        return torch.stack([choice(part, truth[..., index]) for index, part in enumerate(parts)]).sum()

    def ask_numbers(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """How many, and how high."""
        asked = self.questions.expand(len(scenes), -1, -1)
        seen = asked + self.look(asked, features, features, need_weights=False)[0]
        return choice(self.numbers(seen), torch.tensor([number_label(scene) for scene in scenes]))


def number_label(scene: Scene) -> list[int]:
    """The count and the heights of the bars; 0 where there is none."""
    bars = scene.labels.bars
    return [scene.labels.count, *bars, *[0] * (BAR_SLOTS - len(bars))]


def choice(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy of logits [..., classes] against class numbers [...]."""
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


def rare_choice(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy where something is plus where nothing is, so that the many empty places do not drown the few."""
    something = truth > 0
    return choice(logits[something], truth[something]) + choice(logits[~something], truth[~something])
