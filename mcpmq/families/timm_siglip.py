"""SigLIP vision encoder of MiniCPM-V 2.0 in the layout of the timm library: sizes and tensors."""

from collections.abc import Iterator

from mcpmq.families.family import TensorSpec, VisionShape
from mcpmq.families.qwen_vision import qwen_layer_specs
from mcpmq.families.siglip import SiglipConfig
from mcpmq.families.tensors import layer_norm_specs

# Bicubic kernel that resizes the position embeddings (Keys 1981, a = -1/2) for distances in [0, 1] and [1, 2];
# polynomial coefficients, highest power first.
BICUBIC_INNER, BICUBIC_OUTER = (1.5, -2.5, 0.0, 1.0), (-0.5, 2.5, -4.0, 2.0)
FFN_NAMES = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
SO400M = SiglipConfig(
    hidden_size=1152,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=4304,
    patch_size=14,
    image_size=384,
)


def timm_siglip_specs(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the tensors of the vision encoder; layer names are those of Qwen-VL."""
    patches = f"{hub_name}.patch_embed"
    yield TensorSpec(
        "vision.patch_embedding", f"{patches}.proj.weight", (shape.hidden_size, 3, shape.patch_size, shape.patch_size)
    )
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.proj.bias", (shape.hidden_size,))
    table, held = (1, shape.position_grid_size**2, shape.hidden_size), (f"{patches}.pos_embed",)
    # Not a table: the embeddings are interpolated, so quantization errors of many rows would add up.
    yield TensorSpec("vision.position_embedding", f"{hub_name}.pos_embed", table, module_names=held)
    for layer in range(shape.num_layers):
        yield from qwen_layer_specs(shape, FFN_NAMES, layer, hub_name)
    yield from layer_norm_specs("vision.post_norm", f"{hub_name}.norm", shape.hidden_size)
