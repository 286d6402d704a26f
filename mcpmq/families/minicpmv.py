"""MiniCPM-V 2.5, 2.6, 4.0 and 4.5: SigLIP and a resampler with Llama, Qwen2, MiniCPM4 or Qwen3."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import HiddenSize, check_unsupported_keys, validate_config
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.language_shape import LanguageShape
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.resampler import RESAMPLER_HEAD_DIM, resampler_specs
from mcpmq.families.siglip import SiglipConfig, siglip_specs
from mcpmq.families.smoothing_mappings import DECODER, RESAMPLER, SIGLIP
from mcpmq.families.tensors import decoder_specs


class _Config(LanguageConfig):
    hidden_size: Annotated[HiddenSize, Field(multiple_of=RESAMPLER_HEAD_DIM)]
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_config: SiglipConfig


def version_of(config: Mapping[str, Any]) -> str:
    """Return the version of a raw config.json, for example `2.6`; 2.0 and 2.5 may have no `version` key."""
    version = config.get("version")
    if version is None:
        return "2.0" if (config.get("hidden_size"), config.get("query_num")) == (2304, 64) else "2.5"
    return f"{version}.0" if str(version).isdigit() else str(version)


def encoder_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    """Return the tensors of the vision encoder and the resampler."""
    return (*siglip_specs(architecture.required_vision, "vpm"), *resampler_specs(architecture, "resampler"))


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    decoder = decoder_specs(architecture.language, "llm.model", head="llm.lm_head.weight")
    return (*encoder_specs(architecture), *decoder)


def _family(
    version: str, hub_id: str, language: Callable[[_Config], LanguageShape], flat: bool = False, **fields: Any
) -> Family:
    name = f"minicpm-v-{version}"

    def parse_architecture(config: Mapping[str, Any]) -> Architecture:
        """Read the hyperparameters from a raw config.json.

        Raises:
            CheckpointError: a size is missing or out of range, or a feature is not supported.
        """
        sizes = validate_config(_Config, normalize_text_config(config))
        check_unsupported_keys(config, name, "tie_word_embeddings", "drop_vision_last_layer")
        slices = {"slice_resolution": sizes.image_size, "num_queries": sizes.query_num, "flat_positions": flat}
        return Architecture(language(sizes), sizes.vision_config.to_shape("siglip-resampler", **slices))

    return Family(
        name=name,
        hub_ids=(hub_id,),
        matches=lambda config: config.get("model_type") == "minicpmv" and version_of(config) == version,
        parse_architecture=parse_architecture,
        tensor_specs=_tensor_specs,
        inputs_module="mcpmq.families.minicpmv_inputs",
        torch_builder="mcpmq.families.modeling_minicpmv:build",
        input_from=(("resampler.proj", "resampler.ln_post"),),
        smoothing_mappings=(*DECODER, *SIGLIP, *RESAMPLER),
        **fields,
    )


MINICPM_V_2_5 = _family(
    "2.5",
    "openbmb/MiniCPM-Llama3-V-2_5",
    lambda sizes: sizes.to_shape("llama", permuted_rope=True),
    flat=True,
    prompt_format=PromptFormat("<|eot_id|>", video_max_slices=1, uses_image_id=False, image_tags_for_slices=True),
    minicpmv_version=2,
    caveats=(
        (
            "gguf",
            "llama.cpp looks up position embeddings by row and column: exact for square slices, approximate for others",
        ),
    ),
)
MINICPM_V_2_6 = _family(
    "2.6", "openbmb/MiniCPM-V-2_6", lambda sizes: sizes.to_shape("qwen2", attention_bias=True), minicpmv_version=3
)
MINICPM_V_4_0 = _family(
    "4.0", "openbmb/MiniCPM-V-4", lambda sizes: sizes.to_shape("llama", permuted_rope=True), minicpmv_version=5
)
MINICPM_V_4_5 = _family(
    "4.5",
    "openbmb/MiniCPM-V-4_5",
    lambda sizes: sizes.to_shape("qwen3", qk_norm=True, head_dim=sizes.head_dim or 128),
    prompt_format=PromptFormat(video_max_slices=1),
    minicpmv_version=6,
)
