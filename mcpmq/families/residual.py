"""The matrices whose outputs are added to the residual stream, in the layers of all families."""

from collections.abc import Collection

LAYER_OUTPUT = ""
NEXT_NORMS = ("post_attention_norm", "norm2")  # of language and vision layers; read the stream after the addition
STREAM_READERS = dict.fromkeys(("attention.o", "linear.o", "conv.out"), NEXT_NORMS) | {"mlp.down": (LAYER_OUTPUT,)}


def stream_reader(matrix: str, tensors: Collection[str]) -> str | None:
    """Return the norm that reads the residual stream after the outputs of a matrix were added, or LAYER_OUTPUT.

    `matrix` and `tensors`, those of its block, are common names. None if the outputs are not added to a stream, or are
    scaled by channel or normalized before the addition.
    """
    block, separator, layer_and_part = matrix.partition(".layers.")
    layer, _, part = layer_and_part.partition(".")
    sublayer = f"{block}.layers.{layer}.{part.partition('.')[0]}"
    is_scaled = any(f"{sublayer}.{name}" in tensors for name in ("scale", "norm_output"))
    for reader in STREAM_READERS.get(part, ()) if separator and not is_scaled else ():
        name = f"{block}.layers.{layer}.{reader}"
        if reader == LAYER_OUTPUT or name in tensors:
            return name if reader else LAYER_OUTPUT
    return None
