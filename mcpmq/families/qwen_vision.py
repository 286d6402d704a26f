"""Vision encoders of Qwen-VL for images of any size: shared config keys and tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import ConfigSchema, HeadCount, LayerCount
from mcpmq.families.family import Architecture, TensorSpec, VisionKind, VisionShape
from mcpmq.families.tensors import PaddableAxis, layer_norm_specs, matrix_specs

NORM_EPSILON = 1e-6
LAYER_NAMES = {"norm1": "norm1", "attention.qkv": "attn.qkv", "attention.o": "attn.proj", "norm2": "norm2"}
SEPARATE_NAMES = {f"attention.{part}": f"attn.{part}" for part in "qkv"}  # of Qwen2.5-Omni, instead of `attention.qkv`

# QuickGELU(0) = SiLU(0) = 0, so zero rows of gate and up with zero columns of down do not change the output.
PADDABLE_AXES: dict[str, PaddableAxis] = {"mlp.gate": "rows", "mlp.up": "rows", "mlp.down": "columns"}


class _Rope(ConfigSchema):
    rope_theta: float = Field(default=10000.0, ge=10000, le=10000)  # constant in all formats


class QwenVisionConfig(ConfigSchema):
    """Shared keys of `vision_config`."""

    rope_parameters: _Rope = _Rope()

    depth: LayerCount = 32
    num_heads: HeadCount = 16
    patch_size: PositiveInt = Field(default=14, le=256)
    spatial_merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)

    def to_shape(self, kind: VisionKind, hidden_size: int, intermediate_size: int, **settings: Any) -> VisionShape:
        """Return the hyperparameters; the keys of the two sizes differ between versions."""
        return VisionShape(
            kind=kind,
            hidden_size=hidden_size,
            num_layers=self.depth,
            num_heads=self.num_heads,
            intermediate_size=intermediate_size,
            patch_size=self.patch_size,
            norm_epsilon=NORM_EPSILON,
            temporal_patch_size=self.temporal_patch_size,
            spatial_merge_size=self.spatial_merge_size,
            **settings,
        )


def patch_embedding_spec(shape: VisionShape, hub_name: str) -> TensorSpec:
    """Return the patch embedding without a bias."""
    size = (shape.hidden_size, 3, shape.temporal_patch_size, shape.patch_size, shape.patch_size)
    return TensorSpec("vision.patch_embedding", f"{hub_name}.patch_embed.proj.weight", size)


def qwen_layer_specs(
    shape: VisionShape, ffn_names: Mapping[str, str], layer: int, hub_name: str
) -> Iterator[TensorSpec]:
    """Yield one layer; `ffn_names` maps common names of the FFN matrices to hub names."""
    square = (shape.hidden_size, shape.hidden_size)
    sizes = {
        "attention.qkv": (3 * shape.hidden_size, shape.hidden_size),
        **dict.fromkeys((*SEPARATE_NAMES, "attention.o"), square),
        "mlp.gate": (shape.intermediate_size, shape.hidden_size),
        "mlp.up": (shape.intermediate_size, shape.hidden_size),
        "mlp.down": (shape.hidden_size, shape.intermediate_size),
    }
    for part, hub_part in {**_layer_names(shape), **ffn_names}.items():
        name, hub = f"vision.layers.{layer}.{part}", f"{hub_name}.blocks.{layer}.{hub_part}"
        if part in sizes:
            yield from matrix_specs(name, hub, sizes[part], paddable_axis=PADDABLE_AXES.get(part))
        else:
            yield from _norm_specs(shape, name, hub, shape.hidden_size)


def _layer_names(shape: VisionShape) -> dict[str, str]:
    if shape.kind != "qwen2.5-omni":
        return LAYER_NAMES
    return SEPARATE_NAMES | {part: name for part, name in LAYER_NAMES.items() if part != "attention.qkv"}


def qwen_merger_specs(
    architecture: Architecture, names: tuple[str, str, str], name: str, hub_name: str, patches_per_norm: int = 1
) -> Iterator[TensorSpec]:
    """Yield a merger, which maps a square of patches to one token.

    `names` are the hub names of its norm and its two matrices; `patches_per_norm` patches are normalized together.
    """
    shape, (norm, up, down) = architecture.required_vision, (f"{hub_name}.{part}" for part in names)
    square = shape.hidden_size * shape.spatial_merge_size**2
    yield from _norm_specs(shape, f"{name}.norm", norm, patches_per_norm * shape.hidden_size)
    yield from matrix_specs(f"{name}.up", up, (square, square))
    yield from matrix_specs(f"{name}.down", down, (architecture.language.hidden_size, square))


def _norm_specs(shape: VisionShape, name: str, hub_name: str, width: int) -> Iterator[TensorSpec]:
    """Yield a LayerNorm, or for Qwen2.5 an RMSNorm without a bias."""
    scale, bias = layer_norm_specs(name, hub_name, width)
    yield from (scale,) if shape.kind in ("qwen2.5-vl", "qwen2.5-omni") else (scale, bias)
