"""MiniCPM-V 2.0: SigLIP as the timm library has it, and a resampler that places its queries too, before MiniCPM."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.config_schema import Width, checked, refuse_keys
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.families.language import LanguageConfig, text_keys
from mcpmq.families.minicpmv import version_of
from mcpmq.families.prompt_format import Layout
from mcpmq.families.resampler import HEAD_WIDTH_OF_RESAMPLER, resampler
from mcpmq.families.siglip import Siglip
from mcpmq.families.smoothing_mappings import GATED_LANGUAGE, QWEN_VISION, RESAMPLER
from mcpmq.families.tensors import decoder
from mcpmq.families.timm_siglip import SO400M, timm_siglip

NAME = "minicpm-v-2.0"
# Published code has it, no file of the checkpoint.
TEMPLATE = (
    "<s>{% for message in messages %}{{ '<用户>' if message['role'] == 'user' else '<AI>' }}{{ message['content'] }}"
    "{% endfor %}<AI>"
)


class _Config(LanguageConfig):
    hidden_size: Annotated[Width, Field(multiple_of=HEAD_WIDTH_OF_RESAMPLER)]
    max_position_embeddings: PositiveInt = 2048
    scale_emb: PositiveFloat = 1
    scale_depth: PositiveFloat = 1
    dim_model_base: PositiveFloat = 1
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_encoder: Literal["vit_so400m_patch14_siglip_384.webli"] = "vit_so400m_patch14_siglip_384.webli"
    # The published one names its tower alone; sizes, written as later ones write them, go before the name.
    vision_config: Siglip = SO400M
    drop_vision_last_layer: bool = True

    @property
    def tower(self) -> Siglip:
        """As far as checkpoints have it: what is dropped is not stored either."""
        layers = self.vision_config.num_hidden_layers - self.drop_vision_last_layer
        return self.vision_config.model_copy(update={"num_hidden_layers": layers})


def sizes_of(config: Mapping[str, Any]) -> _Config:
    """The keys of a raw config.json.

    Raises:
        CheckpointError: a size is missing, out of range, or asks for what 2.0 does not have.
    """
    refuse_keys(config, NAME, "tie_word_embeddings", "attention_bias")
    return checked(_Config, text_keys(config))


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json; raises as `sizes_of`."""
    sizes = sizes_of(config)
    language = sizes.shape(
        "minicpm",
        embedding_scale=sizes.scale_emb,
        residual_scale=sizes.scale_depth / sizes.num_hidden_layers**0.5,
        head_divisor=sizes.hidden_size / sizes.dim_model_base,
        permuted_rope=True,
    )
    vision = sizes.tower.shape("timm-resampler", slice_side=sizes.image_size, queries=sizes.query_num)
    return Architecture(language, vision)


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    shape = architecture.sees.queries, architecture.language.hidden
    places = TensorSpec("projector.query_position", "resampler.pos_embed", shape)
    language = decoder(architecture.language, "llm.model", head="llm.lm_head.weight")
    return (*timm_siglip(architecture.sees, "vpm"), *resampler(architecture, "resampler"), places, *language)


MINICPM_V_2_0 = Family(
    name=NAME,
    published=("openbmb/MiniCPM-V-2",),
    recognises=lambda config: config.get("model_type") == "minicpmv" and version_of(config) == "2.0",
    architecture=architecture_of,
    tensors=_tensors,
    inputs="mcpmq.families.minicpmv_inputs",
    layout=Layout("</s>", slicing="configured", numbered=False, slices_as_images=True, template=TEMPLATE),
    native="mcpmq.families.modeling_minicpmv2:build",
    llama_cpp_version=2,  # that of 2.5, whose tags it has; llama.cpp knows no 2.0
    caveats=(
        (
            "gguf",
            "llama.cpp takes the position of a patch from the nearest of 70 by 70 cells, which are right for square"
            " slices, and nearly so for others; its GELU is approximate, the original's is not",
        ),
    ),
    fed_by=(("resampler.proj", "resampler.ln_post"),),
    folds=(*GATED_LANGUAGE, *QWEN_VISION, *RESAMPLER),
)
