"""SigLIP as the timm library has it, the vision tower of MiniCPM-V 2.0: the sizes behind its name, and its tensors."""

from collections.abc import Iterator

from mcpmq.families.family import TensorSpec, VisionShape
from mcpmq.families.qwen_vision import qwen_layer
from mcpmq.families.siglip import Siglip
from mcpmq.families.tensors import layer_norm

# Its table of positions is resized by Keys' cubic of 1981 with a slope of -1/2, up to one cell away and up to two;
# highest powers first.
NEAR, FAR = (1.5, -2.5, 0.0, 1.0), (-0.5, 2.5, -4.0, 2.0)
FFN = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
SO400M = Siglip(
    hidden_size=1152,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=4304,
    patch_size=14,
    image_size=384,
)


def timm_siglip(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """The vision tower; its layers have the names of Qwen's."""
    patches = f"{hub_name}.patch_embed"
    yield TensorSpec("vision.patch_embedding", f"{patches}.proj.weight", (shape.hidden, 3, shape.patch, shape.patch))
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.proj.bias", (shape.hidden,))
    table, held = (1, shape.grid**2, shape.hidden), (f"{patches}.pos_embed",)
    # Mixed from many neighbours, in which rounding would show: it stays as it is.
    yield TensorSpec("vision.position_embedding", f"{hub_name}.pos_embed", table, native_names=held)
    for layer in range(shape.layers):
        yield from qwen_layer(shape, FFN, layer, hub_name)
    yield from layer_norm("vision.post_norm", f"{hub_name}.norm", shape.hidden)
