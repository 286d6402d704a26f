"""Qwen2.5-Omni: the vision encoder of Qwen2.5-VL, an audio encoder, and Qwen2.5; speech output passes through."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import HiddenSize, required_table, validate_config
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.language import LanguageConfig
from mcpmq.families.qwen2_5vl import FFN_NAMES, QWEN2_5_VL, parse_vision
from mcpmq.families.qwen2vl import MERGER_NAMES, parse_language
from mcpmq.families.qwen_vision import patch_embedding_spec, qwen_layer_specs, qwen_merger_specs
from mcpmq.families.smoothing_mappings import DECODER, SEPARATE_QWEN_VISION, WHISPER
from mcpmq.families.tensors import decoder_specs, matrix_specs, with_module_prefixes
from mcpmq.families.whisper import WhisperConfig, whisper_specs

POOL_SIZE = 2  # constant of the model class
# Hub name prefix -> prefix in the torch module, which is the thinker alone.
MODULE_PREFIXES = {
    "thinker.model.": "model.language_model.",
    "thinker.visual.": "model.visual.",
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.": "",
}


class _Language(LanguageConfig):
    default_rope_theta: ClassVar[float] = 1e6


class _Audio(WhisperConfig):
    """Keys of `audio_config`; defaults are those of the transformers class."""

    n_window: PositiveInt = Field(default=100, le=1 << 15)
    output_dim: HiddenSize = 3584


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json; a size may be missing, out of range, or not fit another one."""
    thinker = required_table(config, "thinker_config")
    language, sizes = parse_language(thinker, _Language), validate_config(_Audio, thinker.get("audio_config") or {})
    if sizes.output_dim != language.hidden_size or sizes.n_window > sizes.max_source_positions:
        raise CheckpointError(
            f"`audio_config` has an output of {sizes.output_dim} for a hidden size of {language.hidden_size}, and"
            f" windows of {sizes.n_window} frames with {sizes.max_source_positions} positions",
            "compare `config.json` with the published file",
        )
    audio = sizes.to_shape("qwen2.5-omni", chunk_frames=sizes.n_window, pool_size=POOL_SIZE)
    return Architecture(language, replace(parse_vision(thinker), kind="qwen2.5-omni"), audio)


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return with_module_prefixes(_specs(architecture), MODULE_PREFIXES)


def _specs(architecture: Architecture) -> Iterator[TensorSpec]:
    audio, vision, language = architecture.required_audio, architecture.required_vision, architecture.language
    tower, unused = "thinker.audio_tower", (2, language.hidden_size)  # the shape of a table that is never read
    yield TensorSpec("audio.unused_tokens", f"{tower}.audio_bos_eos_token.weight", unused)
    yield from whisper_specs(audio, tower, "ln_post")
    yield from matrix_specs("audio_projector.out", f"{tower}.proj", (language.hidden_size, audio.hidden_size))
    yield patch_embedding_spec(vision, "thinker.visual")
    for layer in range(vision.num_layers):
        yield from qwen_layer_specs(vision, FFN_NAMES, layer, "thinker.visual")
    yield from qwen_merger_specs(architecture, MERGER_NAMES, "projector", "thinker.visual.merger")
    yield from decoder_specs(language, "thinker.model", head="thinker.lm_head.weight")


QWEN2_5_OMNI = replace(
    QWEN2_5_VL,
    name="qwen2.5-omni",
    hub_ids=("Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B"),
    matches=lambda config: config.get("model_type") == "qwen2_5_omni",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.qwen_omni_inputs",
    torch_builder="mcpmq.families.modeling_transformers:qwen2_5_omni",
    prompt_format=replace(
        QWEN2_5_VL.prompt_format,
        supports_video=False,
        image_token="<|IMAGE|>",
        vision_tags=("<|vision_bos|>", "<|vision_eos|>"),
        audio_token="<|AUDIO|>",
        audio_tags=("<|audio_bos|>", "<|audio_eos|>"),
    ),
    has_audio=True,
    passthrough=(("speech", "talker"), ("speech", "token2wav")),
    speech_switch="enable_audio_output",
    caveats=(
        *QWEN2_5_VL.caveats,
        (
            "gguf",
            "llama.cpp pads audio to segments of 30 seconds, in which every frame attends to all, not within 2 seconds",
        ),
    ),
    smoothing_mappings=(*DECODER, *SEPARATE_QWEN_VISION, *WHISPER),
)
