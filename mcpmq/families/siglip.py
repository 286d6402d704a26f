"""SigLIP, the vision tower of every MiniCPM-V since 2.5: its keys and its tensors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.config_schema import Checked, Heads, HiddenWidth, Layers, Width
from mcpmq.families.family import TensorSpec, VisionKind, VisionShape
from mcpmq.families.tensors import Growth, layer_norm, matrix

VISION_LAYER = {
    "norm1": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}

# GELU of zero is zero, so zero rows above and zero columns below leave every sum as it was.
HIDDEN_WIDTH_OF_VISION: dict[str, Growth] = {"mlp.up": "rows", "mlp.down": "columns"}


class Siglip(Checked):
    """`vision_config` of a tower."""

    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: HiddenWidth
    patch_size: PositiveInt = Field(le=256)
    image_size: PositiveInt = Field(le=16384)
    layer_norm_eps: PositiveFloat = 1e-6

    def shape(self, kind: VisionKind, **more: Any) -> VisionShape:
        """With what stands behind the tower."""
        return VisionShape(
            kind=kind,
            hidden=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            ffn=self.intermediate_size,
            patch=self.patch_size,
            grid=self.image_size // self.patch_size,
            norm_epsilon=self.layer_norm_eps,
            **more,
        )


def siglip(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """The vision tower."""
    patches = f"{hub_name}.embeddings.patch_embedding"
    yield TensorSpec("vision.patch_embedding", f"{patches}.weight", (shape.hidden, 3, shape.patch, shape.patch))
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.bias", (shape.hidden,))
    positions = f"{hub_name}.embeddings.position_embedding.weight"
    yield TensorSpec("vision.position_embedding", positions, (shape.grid**2, shape.hidden), "table")
    for layer in range(shape.layers):
        yield from _siglip_layer(shape, f"vision.layers.{layer}", f"{hub_name}.encoder.layers.{layer}")
        if layer == shape.merger_layer:
            merger = _merger(shape, f"{hub_name}.vit_merger")
            # What no image passes is handed on as it is.
            yield from merger if shape.merges_inside else (replace(spec, role="other") for spec in merger)
    yield from layer_norm("vision.post_norm", f"{hub_name}.post_layernorm", shape.hidden)


def _siglip_layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {"mlp.up": (shape.ffn, shape.hidden), "mlp.down": (shape.hidden, shape.ffn)}
    for part, hub_part in VISION_LAYER.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part.startswith("norm"):
            yield from layer_norm(full, hub, shape.hidden)
        else:
            size = sizes.get(part, (shape.hidden, shape.hidden))
            yield from matrix(full, hub, size, may_grow=HIDDEN_WIDTH_OF_VISION.get(part))


def _merger(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """Attention inside of squares of four patches, then a matrix that makes one of the four."""
    four = 4 * shape.hidden
    yield from layer_norm("vision.merger.norm1", f"{hub_name}.layer_norm1", shape.hidden)
    for part in ("q", "k", "v", "o"):
        hub = f"{hub_name}.{VISION_LAYER[f'attention.{part}']}"
        yield from matrix(f"vision.merger.attention.{part}", hub, (shape.hidden, shape.hidden))
    yield from layer_norm("vision.merger.norm2", f"{hub_name}.pre_norm", four)
    yield from matrix("vision.merger.up", f"{hub_name}.linear_1", (4 * shape.ffn, four))
    yield from matrix("vision.merger.down", f"{hub_name}.linear_2", (shape.hidden, 4 * shape.ffn))
