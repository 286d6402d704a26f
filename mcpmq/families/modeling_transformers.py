"""Families that transformers has a class for: that class, built without weights."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers  # which imports a class when it is named: only the one that is asked for
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep


def qwen2_vl(config: Mapping[str, Any]) -> nn.Module:
    """Qwen2-VL of a raw config.json."""
    return build(transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(**config))


def qwen2_5_vl(config: Mapping[str, Any]) -> nn.Module:
    """Qwen2.5-VL of a raw config.json."""
    return build(transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig(**config))


def qwen3_vl(config: Mapping[str, Any]) -> nn.Module:
    """Qwen3-VL of a raw config.json."""
    return build(transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig(**config))


def minicpmv4_6(config: Mapping[str, Any]) -> nn.Module:
    """MiniCPM-V 4.6 of a raw config.json."""

    class Answering(transformers.MiniCPMV4_6ForConditionalGeneration):  # type: ignore[no-untyped-call]
        """The class of transformers says the logits of all tokens, whatever it is asked for; this one does not."""

        def forward(self, logits_to_keep: int | Tensor = 0, **arguments: Any) -> CausalLMOutputWithPast:
            hidden = self.model(**arguments).last_hidden_state
            return CausalLMOutputWithPast(logits=self.lm_head(slice_logits_to_keep(hidden, logits_to_keep)))

    return build(Answering, transformers.MiniCPMV4_6Config(**config))


def minicpmv4_7(config: Mapping[str, Any]) -> nn.Module:
    """MiniCPM-V 4.7 of a raw config.json."""
    return build(transformers.MiniCPMV4_7ForConditionalGeneration, transformers.MiniCPMV4_7Config(**config))


def minicpm3(config: Mapping[str, Any]) -> nn.Module:
    """MiniCPM3 of a raw config.json."""
    return build(transformers.MiniCPM3ForCausalLM, transformers.MiniCPM3Config(**config))


def build(model_class: Any, config: transformers.PreTrainedConfig) -> nn.Module:
    """A model in float32 without weights: parameters on the meta device, buffers real, no parameter in two modules."""
    with torch.device("meta"):
        model: nn.Module = model_class._from_config(config, dtype=torch.float32)
    for name, module in list(model.named_modules()):
        # Their frequencies are computed, never stored: nothing would ever bring them off the meta device.
        if isinstance(scale := getattr(module, "scalar_embed_scale", None), int | float):
            module.embed_scale = torch.tensor(scale)
        elif any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, type(module)(module.config))
    shape = model.get_parameter("lm_head.weight").shape
    # A head that is tied to the embedding is a block of its own, filled from the same tensor.
    model.get_submodule("lm_head").weight = nn.Parameter(torch.empty(shape, device="meta"))
    model.train(False)
    return model
