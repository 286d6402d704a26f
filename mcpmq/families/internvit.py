"""InternViT, the vision encoder of InternVL: config keys and tensors."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, HeadCount, HiddenSize, IntermediateSize, LayerCount
from mcpmq.families.family import TensorSpec, VisionShape
from mcpmq.families.siglip import PADDABLE_AXES
from mcpmq.families.tensors import layer_norm_specs, matrix_specs

LAYER_NAMES = {
    "norm1": "layernorm_before",
    "attention.q": "attention.q_proj",
    "attention.k": "attention.k_proj",
    "attention.v": "attention.v_proj",
    "attention.o": "attention.projection_layer",
    "attention.scale": "lambda_1",
    "norm2": "layernorm_after",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "mlp.scale": "lambda_2",
}


def _side(value: Any) -> Any:
    """Return the side of a square that is given as [height, width]."""
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value


class InternVitConfig(ConfigSchema):
    """Keys of `vision_config`; defaults are those of the transformers class."""

    hidden_size: HiddenSize = 1024
    num_hidden_layers: LayerCount = 24
    num_attention_heads: HeadCount = 16
    intermediate_size: IntermediateSize = 4096
    layer_norm_eps: PositiveFloat = 1e-6
    image_size: Annotated[PositiveInt, BeforeValidator(_side), Field(le=4096)] = 448
    patch_size: Annotated[PositiveInt, BeforeValidator(_side), Field(le=256)] = 14
    hidden_act: Literal["gelu"] = "gelu"
    attention_bias: Literal[True]  # as all published models with LayerNorm
    norm_type: Literal["layer_norm"] = "layer_norm"
    use_qk_norm: Literal[False] = False
    use_mask_token: Literal[False] = False
    use_mean_pooling: Literal[True] = True  # no norm after the last layer
    use_absolute_position_embeddings: Literal[True] = True

    def to_tiles(self, merge_size: int) -> VisionShape:
        """Return the hyperparameters; `merge_size` is the side of the square of patches that becomes one token.

        Raises:
            CheckpointError: a tile has no whole number of squares.
        """
        grid = self.image_size // self.patch_size
        if grid % merge_size:
            raise CheckpointError(
                f"`config.json` has tiles of {grid}x{grid} patches, no multiple of {merge_size} (`downsample_ratio`)",
                "compare it with the published file",
            )
        return VisionShape(
            kind="internvit",
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            patch_size=self.patch_size,
            norm_epsilon=self.layer_norm_eps,
            position_grid_size=grid,
            slice_resolution=self.image_size,
            spatial_merge_size=merge_size,
            num_queries=(grid // merge_size) ** 2,
        )


def internvit_specs(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the tensors of the vision encoder."""
    hidden, hub = shape.hidden_size, f"{hub_name}.embeddings"
    yield TensorSpec("vision.class_embedding", f"{hub}.cls_token", (1, 1, hidden))
    positions = (1, shape.position_grid_size**2 + 1, hidden)  # the first is that of the class embedding
    yield TensorSpec("vision.position_embedding", f"{hub}.position_embeddings", positions)
    kernel = (hidden, 3, shape.patch_size, shape.patch_size)
    yield TensorSpec("vision.patch_embedding", f"{hub}.patch_embeddings.projection.weight", kernel)
    yield TensorSpec("vision.patch_embedding.bias", f"{hub}.patch_embeddings.projection.bias", (hidden,))
    for layer in range(shape.num_layers):
        yield from _layer_specs(shape, f"vision.layers.{layer}", f"{hub_name}.encoder.layer.{layer}")


def _layer_specs(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    sizes = {"mlp.up": (inner, hidden), "mlp.down": (hidden, inner)}
    for part, hub_part in LAYER_NAMES.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part.startswith("norm"):
            yield from layer_norm_specs(full, hub, hidden)
        elif part.endswith("scale"):
            yield TensorSpec(full, hub, (hidden,))
        else:
            size = sizes.get(part, (hidden, hidden))
            yield from matrix_specs(full, hub, size, paddable_axis=PADDABLE_AXES.get(part))
