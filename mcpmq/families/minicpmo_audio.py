"""Hyperparameters of the audio encoder of MiniCPM-o."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from mcpmq.errors import CheckpointError
from mcpmq.families.audio_shape import ENCODER_FRAMES_PER_SECOND, AudioShape
from mcpmq.families.config_schema import (
    ConfigSchema,
    HeadCount,
    HiddenSize,
    IntermediateSize,
    LayerCount,
    validate_config,
)
from mcpmq.families.whisper import WhisperConfig

SEGMENT_SECONDS, SEGMENT_FRAMES = 30, 1500  # longer audio is cut; encoder frames of a whole segment


class _Audio(WhisperConfig):
    """Keys of `audio_config`; defaults are those of the configuration class of Whisper."""

    d_model: HiddenSize
    encoder_layers: LayerCount
    encoder_attention_heads: HeadCount
    encoder_ffn_dim: IntermediateSize
    num_mel_bins: int = Field(default=80, ge=1, le=256)


class _Config(ConfigSchema):
    audio_config: _Audio
    audio_pool_step: Literal[2] = 2
    audio_chunk_length: PositiveFloat = Field(default=1.0, ge=1 / ENCODER_FRAMES_PER_SECOND, le=SEGMENT_SECONDS)


def parse_audio(config: Mapping[str, Any]) -> AudioShape:
    """Read the hyperparameters of the audio encoder from a raw config.json.

    Raises:
        CheckpointError: one is missing or out of range, or not supported.
    """
    sizes = validate_config(_Config, config)
    if sizes.audio_config.max_source_positions < SEGMENT_FRAMES:
        raise CheckpointError(
            f"`audio_config` has {sizes.audio_config.max_source_positions} positions, fewer than the {SEGMENT_FRAMES}"
            f" of {SEGMENT_SECONDS} seconds",
            "compare `config.json` with the published file",
        )
    return sizes.audio_config.to_shape(
        "minicpm-o",
        chunk_frames=int(sizes.audio_chunk_length * ENCODER_FRAMES_PER_SECOND),
        pool_size=sizes.audio_pool_step,
        attends_to_earlier_chunks=True,
        max_segment_seconds=SEGMENT_SECONDS,
    )
