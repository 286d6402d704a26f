"""Qwen3-VL: DeepStack image features, interleaved M-RoPE, and Qwen3."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.families.config_schema import HiddenSize, IntermediateSize, validate_config
from mcpmq.families.family import Architecture, TensorSpec, VisionShape
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.qwen2vl import QWEN2_VL
from mcpmq.families.qwen_vision import QwenVisionConfig, patch_embedding_spec, qwen_layer_specs, qwen_merger_specs
from mcpmq.families.smoothing_mappings import DECODER, QWEN_VISION
from mcpmq.families.tensors import decoder_specs

DEFAULT_MROPE_SECTIONS = (24, 20, 20)  # frequencies for time, row and column
FFN_NAMES = {"mlp.up": "mlp.linear_fc1", "mlp.down": "mlp.linear_fc2"}
MERGER_NAMES = ("norm", "linear_fc1", "linear_fc2")


class _Language(LanguageConfig):
    default_rope_theta: ClassVar[float] = 5e5
    head_dim: PositiveInt = Field(default=128, le=4096)


class VisionConfig(QwenVisionConfig):
    """Keys of `vision_config`, also of Qwen3.5; defaults are those of the transformers class."""

    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    hidden_size: HiddenSize = 1152
    intermediate_size: IntermediateSize = 4304
    depth: PositiveInt = Field(default=27, le=1000)
    patch_size: PositiveInt = Field(default=16, le=256)
    num_position_embeddings: PositiveInt = Field(default=2304, le=1 << 20)
    deepstack_visual_indexes: tuple[NonNegativeInt, ...] = (8, 16, 24)

    def to_tower(self) -> VisionShape:
        """Return the hyperparameters."""
        side, layers = isqrt(self.num_position_embeddings), self.deepstack_visual_indexes
        sizes = self.hidden_size, self.intermediate_size
        return self.to_shape("qwen3-vl", *sizes, position_grid_size=side, deepstack_layers=layers)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    vision, text = config.get("vision_config") or {}, validate_config(_Language, normalize_text_config(config))
    sections = text.rope.mrope_section or DEFAULT_MROPE_SECTIONS
    language = text.to_shape("qwen3vl", qk_norm=True, mrope_sections=sections, mrope_interleaved=True)
    return Architecture(language, validate_config(VisionConfig, vision).to_tower())


def tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    """Return all tensors, also of Qwen3.5."""
    return (
        *_vision_specs(architecture, "model.visual"),
        *qwen_merger_specs(architecture, MERGER_NAMES, "projector", "model.visual.merger"),
        *decoder_specs(architecture.language, "model.language_model"),
    )


def _vision_specs(architecture: Architecture, hub: str) -> Iterator[TensorSpec]:
    """Yield the vision encoder; each DeepStack layer has a merger that normalizes whole squares of patches."""
    shape = architecture.required_vision
    yield patch_embedding_spec(shape, hub)
    yield TensorSpec("vision.patch_embedding.bias", f"{hub}.patch_embed.proj.bias", (shape.hidden_size,))
    # Not a table: the embeddings are interpolated, so quantization errors of four rows would add up.
    yield TensorSpec(
        "vision.position_embedding", f"{hub}.pos_embed.weight", (shape.position_grid_size**2, shape.hidden_size)
    )
    for layer in range(shape.num_layers):
        yield from qwen_layer_specs(shape, FFN_NAMES, layer, hub)
        if layer in shape.deepstack_layers:
            name = f"{hub}.deepstack_merger_list.{shape.deepstack_layers.index(layer)}"
            yield from qwen_merger_specs(
                architecture,
                MERGER_NAMES,
                f"projector.layers.{layer}",
                name,
                patches_per_norm=shape.spatial_merge_size**2,
            )


QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3-vl",
    hub_ids=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    matches=lambda config: config.get("model_type") == "qwen3_vl",
    parse_architecture=_parse_architecture,
    tensor_specs=tensor_specs,
    prompt_format=replace(QWEN2_VL.prompt_format, video_time="text"),
    torch_builder="mcpmq.families.modeling_transformers:qwen3_vl",
    caveats=(),
    smoothing_mappings=(*DECODER, *QWEN_VISION),
)
