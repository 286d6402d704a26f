"""Torch model of MiniCPM-V 2.0 (images and text), with the published tensor names.

Three parts differ from later versions: `vpm` is SigLIP in the layout of the timm library, with position embeddings
interpolated to the size of each slice; `resampler` adds position embeddings to its queries; `llm` is MiniCPM, which is
the Granite class of transformers with other names for the scales.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcpmq.families.minicpmv2 import parse_architecture, parse_config
from mcpmq.families.modeling_minicpmv import (
    TOP_LEVEL_KEYS,
    MiniCPMVConfig,
    MiniCPMVForConditionalGeneration,
    Resampler,
    build_on_meta,
)

__all__ = ["MiniCPMV2ForConditionalGeneration", "TimmVisionTower", "build"]


class PatchEmbedding(nn.Module):
    """Patch embedding with interpolated position embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        cells = (config.image_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, config.hidden_size))

    def forward(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Embed packed slices [1, 3, patch, patch * sum(h * w)]: [sum(h * w), hidden]."""
        patches: Tensor = self.proj(pixels).flatten(2)[0].T
        return patches + torch.cat([self.position_embeddings(size) for size in sizes])

    def position_embeddings(self, size: tuple[int, int]) -> Tensor:
        """Interpolate the position embeddings to a grid of `size` (h, w): [h * w, hidden]."""
        side = isqrt(self.pos_embed.shape[1])
        table = self.pos_embed.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(table, size, mode="bicubic", antialias=True)
        return resized[0].flatten(1).T.to(self.pos_embed.dtype)


class Attention(nn.Module):
    """Self-attention within each slice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, value: Tensor, lengths: list[int]) -> Tensor:
        """Map [patches of all slices, width] to the same shape."""
        parts = self.qkv(value).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3).split(lengths, dim=2)
        attended = [functional.scaled_dot_product_attention(*part[:, None]) for part in parts]
        output: Tensor = self.proj(torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1))
        return output


class FeedForward(nn.Module):
    """MLP with the exact GELU."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, value: Tensor) -> Tensor:
        """Map [patches, width] to the same shape."""
        output: Tensor = self.fc2(functional.gelu(self.fc1(value)))
        return output


class Layer(nn.Module):
    """Encoder layer with pre-norms."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.attn = Attention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = FeedForward(width, config.intermediate_size)

    def forward(self, value: Tensor, lengths: list[int]) -> Tensor:
        """Map [patches of all slices, width] to the same shape."""
        value = value + self.attn(self.norm1(value), lengths)
        output: Tensor = value + self.mlp(self.norm2(value))
        return output


class TimmVisionTower(nn.Module):
    """SigLIP with one QKV matrix and interpolated position embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Encode packed slices [1, 3, patch, patch * sum(h * w)]: [sum(h * w), hidden]."""
        value, lengths = self.patch_embed(pixels, sizes), [height * width for height, width in sizes]
        for block in self.blocks:
            value = block(value, lengths)
        normed: Tensor = self.norm(value)
        return normed


class QueryPositionResampler(Resampler):
    """Resampler with stored position embeddings of the queries."""

    def __init__(self, query_num: int, channels: int, vision_channels: int) -> None:
        super().__init__(query_num, channels, vision_channels)
        self.pos_embed = nn.Parameter(torch.zeros(query_num, channels))

    def attend(self, query: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend to one slice, value [h * w, channels], and return [queries, channels]."""
        return super().attend(query + self.pos_embed, value, size)


class MiniCPMV2ForConditionalGeneration(MiniCPMVForConditionalGeneration):  # type: ignore[no-untyped-call]
    """Causal language model with image input; token embeddings are scaled, image features are not."""

    @staticmethod
    def build_vision(config: MiniCPMVConfig) -> tuple[Any, Resampler]:
        """Build the vision encoder and the resampler."""
        vision, width = config.vision_config, config.text_config.hidden_size
        return TimmVisionTower(vision), QueryPositionResampler(config.query_num, width, vision.hidden_size)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> Self:
        """Load a checkpoint; its position embeddings are outside `patch_embed` and need a key mapping."""
        key_mapping = {r"^vpm\.pos_embed": "vpm.patch_embed.pos_embed"}
        model: Self = super().from_pretrained(*arguments, key_mapping=key_mapping, **settings)
        return model

    def embed_token_ids(self, tokens: Tensor) -> Tensor:
        """Look up and scale token ids [1, tokens]: [1, tokens, hidden]."""
        scale: float = self.config.text_config.scale_emb
        return super().embed_token_ids(tokens) * scale

    def get_image_features(self, pixel_values: Tensor, target_sizes: Tensor) -> Tensor:
        """Encode packed slices [1, 3, 14, 14 * sum(h * w)] with sizes int64 [slices, 2]: [slices, queries, hidden]."""
        sizes = [(int(height), int(width)) for height, width in target_sizes.tolist()]
        patches = self.vpm(pixel_values.to(self.vpm.patch_embed.proj.weight.dtype), sizes)
        features: Tensor = self.resampler(patches, sizes)
        return features


def build(config: Mapping[str, Any]) -> MiniCPMVForConditionalGeneration:
    """Build the float32 model of a raw config.json: parameters on the meta device, buffers on the CPU."""
    top_level = {key: config[key] for key in TOP_LEVEL_KEYS & config.keys()}
    parts = {
        "text_config": _granite_config(config),
        "vision_config": parse_config(config).stored_vision_config.model_dump(),
        "version": "2.0",
        "drop_vision_last_layer": False,
    }
    return build_on_meta(MiniCPMV2ForConditionalGeneration, {**top_level, **parts})


def _granite_config(config: Mapping[str, Any]) -> dict[str, Any]:
    language = parse_architecture(config).language
    return {key: value for key, value in config.items() if key not in TOP_LEVEL_KEYS} | {
        "model_type": "granite",
        "residual_multiplier": language.residual_scale,
        "attention_multiplier": language.head_dim**-0.5,
        "logits_scaling": language.logits_divisor,
        "scale_emb": language.embedding_scale,
    }
