"""The vision encoder and merger of Qwen2-VL for batches of images of one size, with its parameters and their names.

It computes the same function as the class of transformers, which runs images one after the other.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTH, WIDTH, HEADS, MLP_RATIO, PATCH, FRAMES, MERGE = 6, 256, 4, 4, 14, 2, 2
NORM_EPSILON, ROPE_THETA, INITIAL_STD = 1e-6, 10_000.0, 0.04
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalized_patches(pixels: Tensor) -> Tensor:
    """Return normalized patches in groups of 2 x 2: uint8 [images, height, width, 3] to [images, patches, 588]."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    values = (pixels.float() / 255 - mean) / std
    images, height, width, _ = pixels.shape
    rows, columns = height // (MERGE * PATCH), width // (MERGE * PATCH)
    split = values.view(images, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    return split.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(images, rows * columns * MERGE**2, -1)


def row_by_row(states: Tensor) -> Tensor:
    """Return the states of patches of square images row by row, not in groups: [images, patches, channels]."""
    images, patches, channels = states.shape
    side = round((patches // MERGE**2) ** 0.5)
    return states.view(images, side, side, MERGE, MERGE, channels).transpose(2, 3).reshape(states.shape)


def rotary_angles(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the angles of rows and columns of patches in groups of 2 x 2: [patches, channels of half a head]."""
    half = WIDTH // HEADS // 2
    frequencies = 1 / ROPE_THETA ** (torch.arange(0, half, 2, device=device) / half)
    grid = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    blocks = [one.view(rows // MERGE, MERGE, columns // MERGE, MERGE).transpose(1, 2).flatten() for one in grid]
    return torch.cat([one[:, None] * frequencies for one in blocks], dim=-1)


def rotated(states: Tensor, angles: Tensor) -> Tensor:
    """Rotate the halves of every head, [images, heads, patches, channels]."""
    cosine, sine = (function(angles).to(states.dtype) for function in (torch.cos, torch.sin))
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Attention(nn.Module):
    """Attention between all patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        """Return the output, [images, patches, channels]."""
        heads = self.qkv(states).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key = (rotated(one, angles) for one in heads[:2])
        mixed = functional.scaled_dot_product_attention(query, key, heads[2])
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """Two matrices with QuickGELU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP_RATIO * WIDTH), nn.Linear(MLP_RATIO * WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        """Return the output, [images, patches, channels]."""
        up = self.fc1(states)
        output: Tensor = self.fc2(up * torch.sigmoid(1.702 * up))
        return output


class Block(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, NORM_EPSILON) for _ in range(2))
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        """Return the residual stream after the layer, [images, patches, channels]."""
        states = states + self.attn(self.norm1(states), angles)
        output: Tensor = states + self.mlp(self.norm2(states))
        return output


class PatchEmbedding(nn.Module):
    """The convolution over two frames, which are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, WIDTH, (FRAMES, PATCH, PATCH), (FRAMES, PATCH, PATCH), bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Return [images, patches, channels]."""
        return functional.linear(patches, self.proj.weight.sum(2).flatten(1))


class Merger(nn.Module):
    """Maps 2 x 2 patches to one image token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        square = WIDTH * MERGE**2
        self.ln_q = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.mlp = nn.Sequential(nn.Linear(square, square), nn.GELU(), nn.Linear(square, hidden))

    def forward(self, states: Tensor) -> Tensor:
        """Return [images, tokens, hidden]."""
        output: Tensor = self.mlp(self.ln_q(states).unflatten(1, (-1, MERGE**2)).flatten(2))
        return output


class VisionEncoder(nn.Module):
    """The encoder and the merger into a language model with `hidden` channels; names are those after `visual.`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patch_embed, self.merger = PatchEmbedding(), Merger(hidden)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                parameter.data /= (2 * DEPTH) ** 0.5

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return states [images, patches, 256] in groups, and features [images, tokens, hidden] row by row."""
        angles = rotary_angles(pixels.shape[1] // PATCH, pixels.shape[2] // PATCH, pixels.device)
        states = self.patch_embed(normalized_patches(pixels))
        for block in self.blocks:
            states = block(states, angles)
        return states, self.merger(states)
