"""Torch models of families with a class in transformers, built without weights."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers  # imports a model class on first access, so only the needed one
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from mcpmq.families.modeling_experts import separate_experts
from mcpmq.families.modeling_joined_images import join_images_of_lfm2_vl, join_images_of_minicpmv4_6


def qwen2_vl(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen2-VL from a raw config.json."""
    return build_on_meta(transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(**config))


def qwen2_5_vl(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen2.5-VL from a raw config.json."""
    return build_on_meta(transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig(**config))


def qwen3_vl(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen3-VL from a raw config.json."""
    return build_on_meta(transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig(**config))


def qwen3_5(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen3.5 from a raw config.json."""
    return build_on_meta(transformers.Qwen3_5ForConditionalGeneration, transformers.Qwen3_5Config(**config))


def qwen3_vl_moe(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen3-VL with a mixture of experts from a raw config.json."""
    published = transformers.Qwen3VLMoeForConditionalGeneration
    return build_on_meta(_with_separate_experts(published), transformers.Qwen3VLMoeConfig(**config))


def qwen3_5_moe(config: Mapping[str, Any]) -> nn.Module:
    """Build Qwen3.5 with a mixture of experts from a raw config.json."""
    published = transformers.Qwen3_5MoeForConditionalGeneration
    return build_on_meta(_with_separate_experts(published), transformers.Qwen3_5MoeConfig(**config))


def _with_separate_experts(published: Any) -> Any:
    """Return a subclass whose experts have modules of their own."""

    class SeparateExperts(published):  # type: ignore[misc]
        def __init__(self, config: transformers.PreTrainedConfig) -> None:
            super().__init__(config)
            separate_experts(self)

    return SeparateExperts


def internvl(config: Mapping[str, Any]) -> nn.Module:
    """Build InternVL from a raw config.json."""
    return build_on_meta(transformers.InternVLForConditionalGeneration, transformers.InternVLConfig(**config))


def gemma3(config: Mapping[str, Any]) -> nn.Module:
    """Build Gemma 3 from a raw config.json."""
    return build_on_meta(transformers.Gemma3ForConditionalGeneration, transformers.Gemma3Config(**without_head(config)))


def lfm2_vl(config: Mapping[str, Any]) -> nn.Module:
    """Build LFM2-VL from a raw config.json."""
    settings = transformers.Lfm2VlConfig(**without_head(config))
    model: Any = build_on_meta(transformers.Lfm2VlForConditionalGeneration, settings)
    published = type(model.model.vision_tower.embeddings)

    class CalledTable(published):  # type: ignore[misc, valid-type]
        """Embeddings that call the module of the position table: blocks are loaded when they are called."""

        def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
            """Embed packed patches [slices, patches, values] of slices with rows and columns [slices, 2]."""
            patches: Tensor = self.patch_embedding(pixel_values)
            table = self.position_embedding(torch.arange(self.num_patches, device=pixel_values.device))
            side = self.position_embedding_size
            grid, count = table.reshape(side, side, -1), pixel_values.shape[1]
            positions: Tensor = self.resize_positional_embeddings(grid, spatial_shapes, max_length=count)
            return patches + positions

    model.model.vision_tower.embeddings.__class__ = CalledTable
    join_images_of_lfm2_vl(model)
    return cast(nn.Module, model)


def without_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw config.json whose SigLIP has no pooling head by default."""
    return {**config, "vision_config": {"vision_use_head": False, **(config.get("vision_config") or {})}}


def smolvlm(config: Mapping[str, Any]) -> nn.Module:
    """Build SmolVLM from a raw config.json."""
    return build_on_meta(transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMConfig(**config))


def qwen2_5_omni(config: Mapping[str, Any]) -> nn.Module:
    """Build the thinker of Qwen2.5-Omni, the part without speech output, from a raw config.json."""

    class SelectiveLogits(transformers.Qwen2_5OmniThinkerForConditionalGeneration):  # type: ignore[no-untyped-call]
        """Subclass that supports `logits_to_keep`, which the transformers class ignores."""

        def forward(self, logits_to_keep: int | Tensor = 0, **arguments: Any) -> CausalLMOutputWithPast:
            output = self.model(**arguments)
            logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
            return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    # Transformers selects the stored names of the weights by the name of the class, and only for its own modules.
    published = transformers.Qwen2_5OmniThinkerForConditionalGeneration
    SelectiveLogits.__name__, SelectiveLogits.__module__ = published.__name__, published.__module__
    thinker = transformers.Qwen2_5OmniThinkerConfig(**config["thinker_config"])
    return build_on_meta(SelectiveLogits, thinker)


def minicpmv4_6(config: Mapping[str, Any]) -> nn.Module:
    """Build MiniCPM-V 4.6 from a raw config.json."""

    class SelectiveLogits(transformers.MiniCPMV4_6ForConditionalGeneration):  # type: ignore[no-untyped-call]
        """Subclass that supports `logits_to_keep`, which the transformers class ignores."""

        def forward(self, logits_to_keep: int | Tensor = 0, **arguments: Any) -> CausalLMOutputWithPast:
            hidden = self.model(**arguments).last_hidden_state
            return CausalLMOutputWithPast(logits=self.lm_head(slice_logits_to_keep(hidden, logits_to_keep)))

    model = build_on_meta(SelectiveLogits, transformers.MiniCPMV4_6Config(**config))
    join_images_of_minicpmv4_6(model)
    return model


def minicpmv4_7(config: Mapping[str, Any]) -> nn.Module:
    """Build MiniCPM-V 4.7 from a raw config.json."""
    return _minicpmv4_7(transformers.MiniCPMV4_7ForConditionalGeneration, config)


def minicpmv4_7_moe(config: Mapping[str, Any]) -> nn.Module:
    """Build MiniCPM-V 4.7 with a mixture of experts from a raw config.json."""
    return _minicpmv4_7(_with_separate_experts(transformers.MiniCPMV4_7ForConditionalGeneration), config)


def _minicpmv4_7(published: Any, config: Mapping[str, Any]) -> nn.Module:
    model = build_on_meta(published, transformers.MiniCPMV4_7Config(**config))
    join_images_of_minicpmv4_6(model)
    return model


def minicpm3(config: Mapping[str, Any]) -> nn.Module:
    """Build MiniCPM3 from a raw config.json."""
    return build_on_meta(transformers.MiniCPM3ForCausalLM, transformers.MiniCPM3Config(**config))


def build_on_meta(model_class: Any, config: transformers.PreTrainedConfig) -> nn.Module:
    """Build a float32 model: parameters on the meta device, buffers on the CPU, no shared parameter."""
    with torch.device("meta"):
        model: nn.Module = model_class._from_config(config, dtype=torch.float32)
    for name, module in list(model.named_modules()):
        # Computed buffers, for example rotary frequencies; loading weights would leave them on the meta device.
        if isinstance(scale := getattr(module, "scalar_embed_scale", None), int | float):
            module.embed_scale = torch.tensor(scale)
        elif (position_ids := getattr(module, "position_ids", None)) is not None:
            module.position_ids = torch.arange(position_ids.shape[1], device="cpu")[None]  # of a learned table
        elif any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, _rebuilt(module))
    shape = model.get_parameter("lm_head.weight").shape
    # A tied head gets a parameter of its own, because blocks are loaded and released one at a time.
    model.get_submodule("lm_head").weight = nn.Parameter(torch.empty(shape, device="meta"))
    model.train(False)
    return model


def _rebuilt(module: Any) -> nn.Module:
    """Return a module without parameters, built again outside of the meta device."""
    if hasattr(module, "config"):
        return cast(nn.Module, type(module)(module.config))
    return cast(nn.Module, type(module)(module.length, module.channels, module.max_timescale))  # sinusoids
