"""MiniCPM-V 2.0: timm SigLIP and a resampler with query positions, and MiniCPM."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import HiddenSize, check_unsupported_keys, validate_config
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.families.language import MiniCpmConfig, normalize_text_config
from mcpmq.families.minicpmv import version_of
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.resampler import RESAMPLER_HEAD_DIM, resampler_specs
from mcpmq.families.siglip import SiglipConfig
from mcpmq.families.smoothing_mappings import DECODER, QWEN_VISION, RESAMPLER
from mcpmq.families.tensors import decoder_specs
from mcpmq.families.timm_siglip import SO400M, timm_siglip_specs

NAME = "minicpm-v-2.0"
CHAT_TEMPLATE = (  # from the published code; the checkpoint has no template file
    "<s>{% for message in messages %}{{ '<用户>' if message['role'] == 'user' else '<AI>' }}{{ message['content'] }}"
    "{% endfor %}<AI>"
)


class _Config(MiniCpmConfig):
    hidden_size: Annotated[HiddenSize, Field(multiple_of=RESAMPLER_HEAD_DIM)]
    max_position_embeddings: PositiveInt = 2048
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_encoder: Literal["vit_so400m_patch14_siglip_384.webli"] = "vit_so400m_patch14_siglip_384.webli"
    # The published file has only the name of the encoder; explicit sizes, as in later versions, override it.
    vision_config: SiglipConfig = SO400M
    drop_vision_last_layer: bool = True

    @property
    def stored_vision_config(self) -> SiglipConfig:
        """Vision encoder without the dropped layer, which checkpoints do not store."""
        layers = self.vision_config.num_hidden_layers - self.drop_vision_last_layer
        return self.vision_config.model_copy(update={"num_hidden_layers": layers})


def parse_config(config: Mapping[str, Any]) -> _Config:
    """Validate the keys of a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    check_unsupported_keys(config, NAME, "tie_word_embeddings", "attention_bias")
    return validate_config(_Config, normalize_text_config(config))


def parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json; raise like `parse_config`."""
    sizes = parse_config(config)
    slices = {"slice_resolution": sizes.image_size, "num_queries": sizes.query_num}
    vision = sizes.stored_vision_config.to_shape("timm-resampler", **slices)
    return Architecture(sizes.to_shape("minicpm", permuted_rope=True), vision)


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    size = architecture.required_vision.num_queries, architecture.language.hidden_size
    return (
        *timm_siglip_specs(architecture.required_vision, "vpm"),
        *resampler_specs(architecture, "resampler"),
        TensorSpec("projector.query_position", "resampler.pos_embed", size),
        *decoder_specs(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


MINICPM_V_2_0 = Family(
    name=NAME,
    hub_ids=("openbmb/MiniCPM-V-2",),
    matches=lambda config: config.get("model_type") == "minicpmv" and version_of(config) == "2.0",
    parse_architecture=parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.minicpmv_inputs",
    prompt_format=PromptFormat(
        "</s>",
        has_system_prompt=False,
        slicing="configured",
        video_max_slices=1,
        uses_image_id=False,
        image_tags_for_slices=True,
        default_chat_template=CHAT_TEMPLATE,
    ),
    torch_builder="mcpmq.families.modeling_minicpmv2:build",
    minicpmv_version=2,  # as 2.5, which has the same tags; llama.cpp has no number for 2.0
    caveats=(
        (
            "gguf",
            "llama.cpp looks up position embeddings in a 70x70 grid, which is exact for square slices and approximate"
            " for others; it uses the approximate GELU, the original the exact one",
        ),
    ),
    input_from=(("resampler.proj", "resampler.ln_post"),),
    smoothing_mappings=(*DECODER, *QWEN_VISION, *RESAMPLER),
)
