"""Audio encoders with the layers of Whisper: config keys and tensors that MiniCPM-o and Qwen2.5-Omni share."""

from collections.abc import Iterator
from math import log
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from mcpmq.families.audio_shape import AudioKind, AudioShape
from mcpmq.families.config_schema import ConfigSchema, HeadCount, HiddenSize, IntermediateSize, LayerCount
from mcpmq.families.family import TensorSpec
from mcpmq.families.tensors import layer_norm_specs, matrix_specs

if TYPE_CHECKING:
    from torch import Tensor

WAVELENGTH = 10000.0


class WhisperConfig(ConfigSchema):
    """Keys of `audio_config`; defaults are those of the encoder of Whisper large-v3."""

    d_model: HiddenSize = 1280
    encoder_layers: LayerCount = 32
    encoder_attention_heads: HeadCount = 20
    encoder_ffn_dim: IntermediateSize = 5120
    num_mel_bins: PositiveInt = Field(default=128, le=256)
    max_source_positions: PositiveInt = Field(default=1500, le=1 << 16)
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False

    def to_shape(self, kind: AudioKind, **settings: Any) -> AudioShape:
        """Return the hyperparameters; `settings` are further fields of `AudioShape`."""
        return AudioShape(
            kind=kind,
            hidden_size=self.d_model,
            num_layers=self.encoder_layers,
            num_heads=self.encoder_attention_heads,
            intermediate_size=self.encoder_ffn_dim,
            num_mel_bins=self.num_mel_bins,
            num_positions=self.max_source_positions,
            **settings,
        )


KERNEL_SIZE = 3  # mel frames of both convolutions
LAYER_NAMES = {
    "norm1": "self_attn_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}


def whisper_specs(shape: AudioShape, hub_name: str, post_norm: str) -> Iterator[TensorSpec]:
    """Yield the convolutions, the layers and the last norm; a learned position table follows the convolutions."""
    inputs = {1: shape.num_mel_bins, 2: shape.hidden_size}
    for number, channels in inputs.items():
        hub = f"{hub_name}.conv{number}"
        yield TensorSpec(f"audio.conv{number}", f"{hub}.weight", (shape.hidden_size, channels, KERNEL_SIZE))
        yield TensorSpec(f"audio.conv{number}.bias", f"{hub}.bias", (shape.hidden_size,))
    if shape.kind == "minicpm-o":
        size = (shape.num_positions, shape.hidden_size)
        yield TensorSpec("audio.position_embedding", f"{hub_name}.embed_positions.weight", size)
    for layer in range(shape.num_layers):
        yield from _layer_specs(shape, f"audio.layers.{layer}", f"{hub_name}.layers.{layer}")
    yield from layer_norm_specs("audio.post_norm", f"{hub_name}.{post_norm}", shape.hidden_size)


def _layer_specs(shape: AudioShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {
        "mlp.up": (shape.intermediate_size, shape.hidden_size),
        "mlp.down": (shape.hidden_size, shape.intermediate_size),
    }
    for part, hub_part in LAYER_NAMES.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part.startswith("norm"):
            yield from layer_norm_specs(full, hub, shape.hidden_size)
        else:
            size = sizes.get(part, (shape.hidden_size, shape.hidden_size))
            yield from matrix_specs(full, hub, size, bias=part != "attention.k")


def inverse_timescales(width: int) -> "Tensor":
    """Return the radians per frame of sinusoidal positions, float32 [width / 2], with the rounding of transformers."""
    import torch  # descriptions of tensors need no torch

    step = log(WAVELENGTH) / (width // 2 - 1)
    return torch.exp(-step * torch.arange(width // 2).float())


def sinusoids(length: int, width: int) -> "Tensor":
    """Return sinusoidal positions, sines before cosines: float32 [length, width]."""
    import torch

    angles = torch.arange(length)[:, None] * inverse_timescales(width)[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
