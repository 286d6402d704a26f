"""The vision towers of Qwen-VL, which take images of any size: their keys, and the tensors that all of them have."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import Checked, Heads, Layers
from mcpmq.families.family import Architecture, TensorSpec, VisionKind, VisionShape
from mcpmq.families.tensors import Growth, layer_norm, matrix

NORM_EPSILON = 1e-6
LAYER = {"norm1": "norm1", "attention.qkv": "attn.qkv", "attention.o": "attn.proj", "norm2": "norm2"}

# Quick GELU of zero is zero, and so is SiLU: zero rows above and zero columns below leave every sum as it was.
HIDDEN_WIDTH: dict[str, Growth] = {"mlp.gate": "rows", "mlp.up": "rows", "mlp.down": "columns"}


class Patches(Checked):
    """What `vision_config` of all of them has."""

    depth: Layers = 32
    num_heads: Heads = 16
    patch_size: PositiveInt = Field(default=14, le=256)
    spatial_merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)

    def shape(self, kind: VisionKind, hidden: int, ffn: int, **more: Any) -> VisionShape:
        """With the sizes that are named otherwise in every one of them."""
        return VisionShape(
            kind=kind,
            hidden=hidden,
            layers=self.depth,
            heads=self.num_heads,
            ffn=ffn,
            patch=self.patch_size,
            norm_epsilon=NORM_EPSILON,
            frames=self.temporal_patch_size,
            merge=self.spatial_merge_size,
            **more,
        )


def patch_embedding(shape: VisionShape, hub_name: str) -> TensorSpec:
    """What sees pixels; a tower that adds a bias names it itself."""
    size = (shape.hidden, 3, shape.frames, shape.patch, shape.patch)
    return TensorSpec("vision.patch_embedding", f"{hub_name}.patch_embed.proj.weight", size)


def qwen_layer(shape: VisionShape, ffn: Mapping[str, str], layer: int, hub_name: str) -> Iterator[TensorSpec]:
    """One layer of a tower; `ffn` says what the matrices behind its attention are called."""
    sizes = {
        "attention.qkv": (3 * shape.hidden, shape.hidden),
        "attention.o": (shape.hidden, shape.hidden),
        "mlp.gate": (shape.ffn, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }
    for part, hub_part in {**LAYER, **ffn}.items():
        name, hub = f"vision.layers.{layer}.{part}", f"{hub_name}.blocks.{layer}.{hub_part}"
        if part in sizes:
            yield from matrix(name, hub, sizes[part], may_grow=HIDDEN_WIDTH.get(part))
        else:
            yield from _norm(shape, name, hub, shape.hidden)


def qwen_merger(
    architecture: Architecture, names: tuple[str, str, str], name: str, hub_name: str, normed: int = 1
) -> Iterator[TensorSpec]:
    """Squares of patches become tokens; `normed` patches are normed together. `names` are those of its norm and of its
    two matrices."""
    shape, (norm, up, down) = architecture.sees, (f"{hub_name}.{part}" for part in names)
    square = shape.hidden * shape.merge**2
    yield from _norm(shape, f"{name}.norm", norm, normed * shape.hidden)
    yield from matrix(f"{name}.up", up, (square, square))
    yield from matrix(f"{name}.down", down, (architecture.language.hidden, square))


def _norm(shape: VisionShape, name: str, hub_name: str, width: int) -> Iterator[TensorSpec]:
    """2.5 norms by the root of the mean square, the others with a bias."""
    scale, bias = layer_norm(name, hub_name, width)
    yield from (scale,) if shape.kind == "qwen2.5-vl" else (scale, bias)
