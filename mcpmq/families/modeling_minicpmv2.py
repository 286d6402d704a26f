"""MiniCPM-V 2.0 (image path) built from transformers parts, under the published tensor names.

As its later siblings but for three things: `vpm` is SigLIP as the timm library has it, whose table of positions is
resized to every slice; `resampler` places its queries too; and `llm` is MiniCPM, which, its scales renamed, is Granite.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcpmq.families.minicpmv2 import architecture_of, sizes_of
from mcpmq.families.modeling_minicpmv import (
    OWN_KEYS,
    MiniCPMVConfig,
    MiniCPMVForConditionalGeneration,
    Resampler,
    build_empty,
)

__all__ = ["MiniCPMV2ForConditionalGeneration", "TimmTower", "build"]


class Patches(nn.Module):
    """Patches of slices become embeddings, and are told where they lie."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        cells = (config.image_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, config.hidden_size))

    def forward(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Packed slices [1, 3, patch, patch * sum(h * w)] -> [sum(h * w), hidden]."""
        patches: Tensor = self.proj(pixels).flatten(2)[0].T
        return patches + torch.cat([self.positions(size) for size in sizes])

    def positions(self, size: tuple[int, int]) -> Tensor:
        """The table resized to a grid of `size` (h, w): [h * w, hidden]."""
        side = isqrt(self.pos_embed.shape[1])
        table = self.pos_embed.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(table, size, mode="bicubic", antialias=True)
        return resized[0].flatten(1).T.to(self.pos_embed.dtype)


class Attention(nn.Module):
    """Patches look at the patches of their own slice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, value: Tensor, lengths: list[int]) -> Tensor:
        """[patches of all slices, width] before and after."""
        parts = self.qkv(value).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3).split(lengths, dim=2)
        looked = [functional.scaled_dot_product_attention(*part[:, None]) for part in parts]
        seen: Tensor = self.proj(torch.cat(looked, dim=2)[0].transpose(0, 1).flatten(1))
        return seen


class FeedForward(nn.Module):
    """Two matrices with GELU between, the exact one."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, value: Tensor) -> Tensor:
        """[patches, width] before and after."""
        hidden: Tensor = self.fc2(functional.gelu(self.fc1(value)))
        return hidden


class Layer(nn.Module):
    """One layer of the tower, norms first."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.attn = Attention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = FeedForward(width, config.intermediate_size)

    def forward(self, value: Tensor, lengths: list[int]) -> Tensor:
        """[patches of all slices, width] before and after."""
        value = value + self.attn(self.norm1(value), lengths)
        output: Tensor = value + self.mlp(self.norm2(value))
        return output


class TimmTower(nn.Module):
    """SigLIP with one matrix for queries, keys and values, and a table of positions that fits every size."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patch_embed = Patches(config)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Packed slices [1, 3, patch, patch * sum(h * w)] -> [sum(h * w), hidden]."""
        value, lengths = self.patch_embed(pixels, sizes), [height * width for height, width in sizes]
        for block in self.blocks:
            value = block(value, lengths)
        normed: Tensor = self.norm(value)
        return normed


class PlacedResampler(Resampler):
    """The same as later, but queries have positions too: those of a square, stored beside them."""

    def __init__(self, query_num: int, channels: int, vision_channels: int) -> None:
        super().__init__(query_num, channels, vision_channels)
        self.pos_embed = nn.Parameter(torch.zeros(query_num, channels))

    def look(self, query: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
        """One slice, value [h * w, channels] -> [query_num, channels]."""
        return super().look(query + self.pos_embed, value, size)


class MiniCPMV2ForConditionalGeneration(MiniCPMVForConditionalGeneration):  # type: ignore[no-untyped-call]
    """Language model that reads images; looked up embeddings are scaled, those of images are not."""

    @staticmethod
    def build_sight(config: MiniCPMVConfig) -> tuple[Any, Resampler]:
        """The tower and what stands behind it."""
        vision, width = config.vision_config, config.text_config.hidden_size
        return TimmTower(vision), PlacedResampler(config.query_num, width, vision.hidden_size)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> Self:
        """As of any model; the table of positions, which the checkpoint has beside the layers, finds its module."""
        moved = {r"^vpm\.pos_embed$": "vpm.patch_embed.pos_embed"}
        model: Self = super().from_pretrained(*arguments, key_mapping=moved, **settings)
        return model

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [1, tokens] as the language model takes them: [1, tokens, hidden]."""
        scale: float = self.config.text_config.scale_emb
        return super().embed(tokens) * scale

    def get_image_features(self, pixel_values: Tensor, target_sizes: Tensor) -> Tensor:
        """Packed slices [1, 3, 14, 14 * sum(h * w)] of int64 [slices, 2] patches -> [slices, query_num, hidden]."""
        sizes = [(int(height), int(width)) for height, width in target_sizes.tolist()]
        seen = self.vpm(pixel_values.to(self.vpm.patch_embed.proj.weight.dtype), sizes)
        features: Tensor = self.resampler(seen, sizes)
        return features


def build(config: Mapping[str, Any]) -> MiniCPMVForConditionalGeneration:
    """The model of a raw config.json in float32, without weights: parameters on the meta device, buffers real."""
    language, own = architecture_of(config).language, {key: config[key] for key in OWN_KEYS & config.keys()}
    text = {key: value for key, value in config.items() if key not in OWN_KEYS} | {
        "model_type": "granite",
        "residual_multiplier": language.residual_scale,
        "attention_multiplier": language.head_width**-0.5,
        "logits_scaling": language.head_divisor,
        "scale_emb": language.embedding_scale,
    }
    parts = {"text_config": text, "vision_config": sizes_of(config).tower.model_dump(), "version": "2.0"}
    return build_empty(MiniCPMV2ForConditionalGeneration, {**own, **parts, "drop_vision_last_layer": False})
