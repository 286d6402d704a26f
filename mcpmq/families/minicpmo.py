"""MiniCPM-o 2.6: vision and language as in MiniCPM-V 2.6, and an audio encoder; speech output passes through."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.minicpmo_audio import parse_audio
from mcpmq.families.minicpmv import MINICPM_V_2_6, encoder_specs, version_of
from mcpmq.families.smoothing_mappings import WHISPER
from mcpmq.families.tensors import decoder_specs, matrix_specs
from mcpmq.families.whisper import whisper_specs

TOKENS_PER_SPAN = 25  # audio tokens between a pair of tags: those of one second
NO_GGUF_AUDIO = (
    "llama.cpp has no projector for the audio encoder of MiniCPM-o; `--gguf-audio glma` writes it under another one,"
    " with the padding and attention of that one"
)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json; see `parse_audio`."""
    return replace(MINICPM_V_2_6.parse_architecture(config), audio=parse_audio(config))


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    audio, hidden, projector = architecture.required_audio, architecture.language.hidden_size, "audio_projection_layer"
    return (
        *encoder_specs(architecture),
        *whisper_specs(audio, "apm", "layer_norm"),
        *matrix_specs("audio_projector.up", f"{projector}.linear1", (hidden, audio.hidden_size)),
        *matrix_specs("audio_projector.down", f"{projector}.linear2", (hidden, hidden)),
        *decoder_specs(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


MINICPM_O_2_6 = replace(
    MINICPM_V_2_6,
    name="minicpm-o-2.6",
    hub_ids=("openbmb/MiniCPM-o-2_6",),
    matches=lambda config: config.get("model_type") == "minicpmo" and version_of(config) == "2.6",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.minicpmo_inputs",
    torch_builder="mcpmq.families.modeling_minicpmo:build",
    prompt_format=replace(
        MINICPM_V_2_6.prompt_format,
        audio_token="<unk>",
        audio_tags=("<|audio_start|>", "<|audio_end|>"),
        audio_span_tokens=TOKENS_PER_SPAN,
    ),
    has_audio=True,
    minicpmv_version=4,
    passthrough=(("speech", "tts"),),
    speech_switch="init_tts",
    without_audio=(("gguf", NO_GGUF_AUDIO),),
    caveats=(("gguf", f"images and text only: {NO_GGUF_AUDIO}"),),
    smoothing_mappings=(*MINICPM_V_2_6.smoothing_mappings, *WHISPER),
)
