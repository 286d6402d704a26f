"""MiniCPM-V 2.5, 2.6, 4.0 and 4.5: SigLIP and a resampler before Llama, Qwen2, MiniCPM4 or Qwen3."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import Width, checked, refuse_keys
from mcpmq.families.family import Architecture, Family, LanguageShape, TensorSpec
from mcpmq.families.language import LanguageConfig, text_keys
from mcpmq.families.prompt_format import Layout
from mcpmq.families.resampler import HEAD_WIDTH_OF_RESAMPLER, resampler
from mcpmq.families.siglip import Siglip, siglip
from mcpmq.families.smoothing_mappings import GATED_LANGUAGE, RESAMPLER, SIGLIP
from mcpmq.families.tensors import decoder


class _Config(LanguageConfig):
    hidden_size: Annotated[Width, Field(multiple_of=HEAD_WIDTH_OF_RESAMPLER)]
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_config: Siglip


def version_of(config: Mapping[str, Any]) -> str:
    """`2.6` of a raw config.json that has it as a number, as a text, or, being of 2.0 or 2.5, not at all."""
    version = config.get("version")
    if version is None:
        return "2.0" if (config.get("hidden_size"), config.get("query_num")) == (2304, 64) else "2.5"
    return f"{version}.0" if str(version).isdigit() else str(version)


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *siglip(architecture.sees, "vpm"),
        *resampler(architecture, "resampler"),
        *decoder(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


def _family(
    version: str, published: str, language: Callable[[_Config], LanguageShape], one_row: bool = False, **more: Any
) -> Family:
    name = f"minicpm-v-{version}"

    def architecture(config: Mapping[str, Any]) -> Architecture:
        """Sizes from a raw config.json.

        Raises:
            CheckpointError: a size is missing, out of range, or asks for what the family does not have.
        """
        sizes = checked(_Config, text_keys(config))
        refuse_keys(config, name, "tie_word_embeddings", "drop_vision_last_layer")
        slices = {"slice_side": sizes.image_size, "queries": sizes.query_num, "one_row": one_row}
        return Architecture(language(sizes), sizes.vision_config.shape("siglip-resampler", **slices))

    return Family(
        name=name,
        published=(published,),
        recognises=lambda config: config.get("model_type") == "minicpmv" and version_of(config) == version,
        architecture=architecture,
        tensors=_tensors,
        inputs="mcpmq.families.minicpmv_inputs",
        native="mcpmq.families.modeling_minicpmv:build",
        fed_by=(("resampler.proj", "resampler.ln_post"),),
        folds=(*GATED_LANGUAGE, *SIGLIP, *RESAMPLER),
        **more,
    )


MINICPM_V_2_5 = _family(
    "2.5",
    "openbmb/MiniCPM-Llama3-V-2_5",
    lambda sizes: sizes.shape("llama", permuted_rope=True),
    one_row=True,
    layout=Layout("<|eot_id|>", numbered=False, slices_as_images=True),
    llama_cpp_version=2,
    caveats=(("gguf", "llama.cpp places patches in two dimensions: right in square slices, and nearly so in others"),),
)
MINICPM_V_2_6 = _family(
    "2.6", "openbmb/MiniCPM-V-2_6", lambda sizes: sizes.shape("qwen2", attention_bias=True), llama_cpp_version=3
)
MINICPM_V_4_0 = _family(
    "4.0", "openbmb/MiniCPM-V-4", lambda sizes: sizes.shape("llama", permuted_rope=True), llama_cpp_version=5
)
MINICPM_V_4_5 = _family(
    "4.5",
    "openbmb/MiniCPM-V-4_5",
    lambda sizes: sizes.shape("qwen3", qk_norm=True, head_width=sizes.head_dim or 128),
    llama_cpp_version=6,
)
