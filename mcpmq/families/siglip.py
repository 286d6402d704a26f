"""SigLIP vision encoder of MiniCPM-V 2.5 and later: config keys and tensors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, HeadCount, HiddenSize, IntermediateSize, LayerCount
from mcpmq.families.family import Role, TensorSpec, VisionKind, VisionShape
from mcpmq.families.tensors import PaddableAxis, layer_norm_specs, matrix_specs

SIGLIP_LAYER_NAMES = {
    "norm1": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}

# GELU(0) = 0, so zero rows of up with zero columns of down do not change the output.
PADDABLE_AXES: dict[str, PaddableAxis] = {"mlp.up": "rows", "mlp.down": "columns"}


class SiglipConfig(ConfigSchema):
    """Keys of `vision_config`."""

    hidden_size: HiddenSize
    num_hidden_layers: LayerCount
    num_attention_heads: HeadCount
    intermediate_size: IntermediateSize
    patch_size: PositiveInt = Field(le=256)
    image_size: PositiveInt = Field(le=16384)
    layer_norm_eps: PositiveFloat = 1e-6
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"

    def to_shape(self, kind: VisionKind, **settings: Any) -> VisionShape:
        """Return the hyperparameters; `settings` are further fields of `VisionShape`."""
        return VisionShape(
            kind=kind,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            patch_size=self.patch_size,
            position_grid_size=self.image_size // self.patch_size,
            norm_epsilon=self.layer_norm_eps,
            **settings,
        )


class DefaultSiglipConfig(SiglipConfig):
    """Keys of `vision_config` with the defaults of the transformers class."""

    hidden_size: HiddenSize = 768
    intermediate_size: IntermediateSize = 3072
    num_hidden_layers: LayerCount = 12
    num_attention_heads: HeadCount = 12
    patch_size: PositiveInt = Field(default=16, le=256)
    image_size: PositiveInt = Field(default=224, le=16384)


class TiledSiglipConfig(SiglipConfig):
    """Keys of `vision_config` of SmolVLM; defaults are those of the transformers class."""

    hidden_size: HiddenSize = 1152
    intermediate_size: IntermediateSize = 3072
    num_hidden_layers: LayerCount = 12
    num_attention_heads: HeadCount = 16
    patch_size: PositiveInt = Field(default=32, le=256)
    image_size: PositiveInt = Field(default=224, le=16384)

    def to_tiles(self, scale_factor: int) -> VisionShape:
        """Return the hyperparameters; `scale_factor` is the side of the square of patches that becomes one token.

        Raises:
            CheckpointError: a tile has no whole number of squares.
        """
        grid = self.image_size // self.patch_size
        if grid % scale_factor:
            raise CheckpointError(
                f"`config.json` has tiles of {grid}x{grid} patches, not a multiple of `scale_factor` {scale_factor}",
                "compare it with the published file",
            )
        tokens = (grid // scale_factor) ** 2
        sizes = {"slice_resolution": self.image_size, "spatial_merge_size": scale_factor, "num_queries": tokens}
        return self.to_shape("siglip-tiles", **sizes)


def siglip_specs(
    shape: VisionShape, hub_name: str, position_role: Role = "table", patch_shape: tuple[int, ...] = ()
) -> Iterator[TensorSpec]:
    """Yield the tensors of the vision encoder; the position embeddings are a table if patches select rows of them.

    `patch_shape` is that of the patch embedding, by default that of a convolution.
    """
    patches = f"{hub_name}.embeddings.patch_embedding"
    kernel = patch_shape or (shape.hidden_size, 3, shape.patch_size, shape.patch_size)
    yield TensorSpec("vision.patch_embedding", f"{patches}.weight", kernel)
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.bias", (shape.hidden_size,))
    positions = f"{hub_name}.embeddings.position_embedding.weight"
    yield TensorSpec(
        "vision.position_embedding", positions, (shape.position_grid_size**2, shape.hidden_size), position_role
    )
    for layer in range(shape.num_layers):
        yield from _siglip_layer_specs(shape, f"vision.layers.{layer}", f"{hub_name}.encoder.layers.{layer}")
        if layer == shape.merger_layer:
            merger = _merger_specs(shape, f"{hub_name}.vit_merger")
            # An inactive merger is copied unchanged.
            yield from merger if shape.uses_vit_merger else (replace(spec, role="other") for spec in merger)
    yield from layer_norm_specs("vision.post_norm", f"{hub_name}.post_layernorm", shape.hidden_size)


def _siglip_layer_specs(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {
        "mlp.up": (shape.intermediate_size, shape.hidden_size),
        "mlp.down": (shape.hidden_size, shape.intermediate_size),
    }
    for part, hub_part in SIGLIP_LAYER_NAMES.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part.startswith("norm"):
            yield from layer_norm_specs(full, hub, shape.hidden_size)
        else:
            size = sizes.get(part, (shape.hidden_size, shape.hidden_size))
            yield from matrix_specs(full, hub, size, paddable_axis=PADDABLE_AXES.get(part))


def _merger_specs(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the merger: attention within 2x2 patches, then an MLP that maps them to one."""
    four = 4 * shape.hidden_size
    yield from layer_norm_specs("vision.merger.norm1", f"{hub_name}.layer_norm1", shape.hidden_size)
    for part in ("q", "k", "v", "o"):
        hub = f"{hub_name}.{SIGLIP_LAYER_NAMES[f'attention.{part}']}"
        yield from matrix_specs(f"vision.merger.attention.{part}", hub, (shape.hidden_size, shape.hidden_size))
    yield from layer_norm_specs("vision.merger.norm2", f"{hub_name}.pre_norm", four)
    yield from matrix_specs("vision.merger.up", f"{hub_name}.linear_1", (4 * shape.intermediate_size, four))
    yield from matrix_specs(
        "vision.merger.down", f"{hub_name}.linear_2", (shape.hidden_size, 4 * shape.intermediate_size)
    )
