"""Names and layouts of tensors in mlx-vlm, as its models have them after `sanitize`, by family."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape

if TYPE_CHECKING:  # a plan is checked and forecast without torch
    from torch import Tensor

_HEAD = {"lm_head.": "language_model.lm_head."}
_QWEN_2 = {"model.": "language_model.model.", "visual.": "vision_tower."} | _HEAD
_QWEN_3 = {"model.language_model.": "language_model.model.", "model.visual.": "vision_tower."} | _HEAD
_MINICPM_V = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.vit_merger.": "vit_merger.",  # before the prefix that it begins with
    "model.vision_tower.": "vision_tower.",
    "model.merger.": "merger.",
} | _HEAD
# Prefixes of published names and of mlx-vlm, by family.
PREFIXES: Mapping[str, Mapping[str, str]] = {
    "qwen2-vl": _QWEN_2,
    "qwen2.5-vl": _QWEN_2,
    "qwen3-vl": _QWEN_3,
    "qwen3.5": _QWEN_3,
    "minicpm-v-4.6": _MINICPM_V,
    "minicpm-v-4.7": _MINICPM_V,
}
# Norms that the original multiplies by 1 + weight, and mlx-vlm by its stored value.
OFFSET_NORMS = (".input_norm", ".post_attention_norm", "language.norm", ".norm_q", ".norm_k")


def mlx_name(family: str, hub_name: str) -> str:
    """Return the name of a tensor in mlx-vlm; draft heads, which it does not load, keep theirs."""
    prefixes = PREFIXES[family]
    found = next((prefix for prefix in prefixes if hub_name.startswith(prefix)), "")
    return prefixes.get(found, "") + hub_name.removeprefix(found)


def is_offset_norm(spec: TensorSpec, shape: LanguageShape) -> bool:
    """Return whether mlx-vlm stores 1 + weight."""
    return shape.offset_norms and spec.name.startswith("language.") and spec.name.endswith(OFFSET_NORMS)


def to_mlx(values: "Tensor", spec: TensorSpec, shape: LanguageShape) -> "Tensor":
    """Return an unquantized tensor in the layout of MLX: channels of a convolution last, norms with their offset."""
    if len(spec.shape) > 2:
        return values.movedim(1, -1).contiguous()
    return values + 1 if is_offset_norm(spec, shape) else values


def from_mlx(stored: "Tensor", spec: TensorSpec, shape: LanguageShape) -> "Tensor":
    """Return the values of a tensor that `to_mlx` converted; those of norms in float32, as they are rounded."""
    if len(spec.shape) > 2:
        return stored.movedim(-1, 1).contiguous()
    return stored.float() - 1 if is_offset_norm(spec, shape) else stored
