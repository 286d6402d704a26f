"""Torch model of MiniCPM-o 2.6 with text, image and audio input: MiniCPM-V 2.6, the encoder of Whisper and a projector.

Transformers has no class for this checkpoint. The layers have the tensor names and values of its `WhisperEncoder`; that
class requires 30 seconds of audio and has no attention by chunks. Speech output is not part of the module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.modeling_outputs import CausalLMOutputWithPast

from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.minicpmo_audio import parse_audio
from mcpmq.families.modeling_minicpmv import MiniCPMVConfig, MiniCPMVForConditionalGeneration, build_on_meta

__all__ = ["AudioEncoder", "AudioProjector", "MiniCPMOConfig", "MiniCPMOForConditionalGeneration", "build"]


class AudioAttention(nn.Module):
    """Attention of the frames of a segment to those of their chunk and of the chunks before it."""

    def __init__(self, width: int, num_heads: int, chunk_frames: int) -> None:
        super().__init__()
        self.num_heads, self.chunk_frames = num_heads, chunk_frames
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attend within each segment of packed frames [sum of lengths, width]."""
        projected = (layer(frames).split(list(lengths)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        attended: Tensor = self.out_proj(torch.cat([self._attend(*parts) for parts in zip(*projected, strict=True)]))
        return attended

    def _attend(self, *parts: Tensor) -> Tensor:
        query, key, value = (part.view(len(part), self.num_heads, -1).transpose(0, 1)[None] for part in parts)
        chunk = torch.arange(query.shape[2], device=query.device) // (self.chunk_frames or query.shape[2])
        attended = scaled_dot_product_attention(query, key, value, chunk[:, None] >= chunk)
        return attended[0].transpose(0, 1).flatten(1)


class AudioLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, shape: AudioShape) -> None:
        super().__init__()
        self.self_attn = AudioAttention(shape.hidden_size, shape.num_heads, shape.chunk_frames)
        self.self_attn_layer_norm = nn.LayerNorm(shape.hidden_size, shape.norm_epsilon)
        self.fc1 = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.fc2 = nn.Linear(shape.intermediate_size, shape.hidden_size)
        self.final_layer_norm = nn.LayerNorm(shape.hidden_size, shape.norm_epsilon)

    def forward(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Compute a layer for packed frames [sum of lengths, width]."""
        frames = frames + self.self_attn(self.self_attn_layer_norm(frames), lengths)
        output: Tensor = frames + self.fc2(gelu(self.fc1(self.final_layer_norm(frames))))
        return output


class AudioEncoder(nn.Module):
    """The encoder of Whisper (arXiv 2212.04356) with attention by chunks."""

    def __init__(self, shape: AudioShape) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(shape.num_mel_bins, shape.hidden_size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(shape.hidden_size, shape.hidden_size, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(shape.num_positions, shape.hidden_size)
        self.layers = nn.ModuleList(AudioLayer(shape) for _ in range(shape.num_layers))
        self.layer_norm = nn.LayerNorm(shape.hidden_size, shape.norm_epsilon)

    def forward(self, segments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encode log-mel spectrograms [mel bins, mel frames] without padding: [frames, width] each."""
        embedded = [self._embed(one) for one in segments]
        lengths = [len(one) for one in embedded]
        frames = torch.cat(embedded)
        for layer in self.layers:
            frames = layer(frames, lengths)
        return torch.split(self.layer_norm(frames), lengths)

    def _embed(self, mel: Tensor) -> Tensor:
        frames = gelu(self.conv2(gelu(self.conv1(mel[None]))))[0].T
        positions: Tensor = self.embed_positions(torch.arange(len(frames), device=frames.device))
        return frames + positions


class AudioProjector(nn.Module):
    """Two linear layers from the width of the encoder to that of the language model."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden_size)
        self.linear2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Project frames [frames, width] to [frames, hidden]."""
        projected: Tensor = self.linear2(self.linear1(frames).relu())
        return projected


class MiniCPMOConfig(MiniCPMVConfig):  # type: ignore[no-untyped-call]
    """The published config.json, split into a vision, an audio and a language configuration."""

    model_type = "minicpmo"

    def __init__(
        self,
        audio_config: dict[str, Any] | None = None,
        audio_pool_step: int = 2,
        audio_chunk_length: float = 1.0,
        **keys: Any,
    ) -> None:
        self.audio_config = dict(audio_config or {})
        self.audio_pool_step, self.audio_chunk_length = audio_pool_step, audio_chunk_length
        super().__init__(**keys)


class MiniCPMOForConditionalGeneration(MiniCPMVForConditionalGeneration):
    """Causal language model with image and audio input; batch size 1, any number of slices and segments."""

    config_class: type[MiniCPMVConfig] = MiniCPMOConfig
    media_arguments = (
        *MiniCPMVForConditionalGeneration.media_arguments,
        "audio_features",
        "audio_lengths",
        "audio_bound",
    )

    def __init__(self, config: MiniCPMOConfig) -> None:
        super().__init__(config)
        self.audio_shape = parse_audio(vars(config))
        self.apm = AudioEncoder(self.audio_shape)
        width = self.audio_shape.hidden_size
        self.audio_projection_layer = AudioProjector(width, config.text_config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_audio_features(self, audio_features: Tensor, audio_lengths: Tensor) -> Tensor:
        """Encode segments [segments, mel bins, mel frames] of these numbers of frames: [audio tokens, hidden]."""
        features = audio_features.to(self.apm.conv1.weight.dtype)
        segments = [one[:, :length] for one, length in zip(features, audio_lengths.tolist(), strict=True)]
        encoded = self.apm(segments)
        projected = self.audio_projection_layer(torch.cat(encoded)).split([len(one) for one in encoded])
        return torch.cat([self._pool(one) for one in projected])

    def _pool(self, frames: Tensor) -> Tensor:
        """Return the means of groups of frames; the last frames may fill no group."""
        size = self.audio_shape.pool_size
        return frames[: len(frames) // size * size].reshape(-1, size, frames.shape[1]).mean(1)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        audio_bound: Tensor | None = None,
        **arguments: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of one sample.

        The arguments of MiniCPM-V; with audio also audio_features float [segments, mel bins, mel frames], padded to the
        longest segment, audio_lengths int64 [segments], their mel frames, and audio_bound int64 [spans, 2], the first
        and past-the-last token of each span, which the features of all segments fill in their order.
        """
        if audio_features is None:
            return super().forward(input_ids, **arguments)
        if audio_lengths is None or audio_bound is None:
            raise ValueError("audio_features requires audio_lengths and audio_bound")
        media = {name: arguments.pop(name, None) for name in MiniCPMVForConditionalGeneration.media_arguments}
        embeddings = self.embed_with_images(input_ids, arguments.pop("inputs_embeds", None), **media)
        features = self.get_audio_features(audio_features, audio_lengths)
        parts = torch.split(features, (audio_bound[:, 1] - audio_bound[:, 0]).tolist())
        return super().forward(inputs_embeds=self.insert_features(embeddings, parts, audio_bound), **arguments)


def build(config: Mapping[str, Any]) -> MiniCPMVForConditionalGeneration:
    """Build the float32 model of a raw config.json: parameters on the meta device, buffers on the CPU."""
    return build_on_meta(MiniCPMOForConditionalGeneration, config)
