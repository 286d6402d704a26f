"""Where scales may move between neighbours, for kinds of blocks that many families are made of."""

from mcpmq.families.family import Fold

# Gated FFN: down sees gate's activation times up, so up alone may take the scales.
GATED_LANGUAGE = (
    Fold("language", "input_norm", ("attention.q", "attention.k", "attention.v")),
    Fold("language", "attention.v", ("attention.o",)),
    Fold("language", "post_attention_norm", ("mlp.gate", "mlp.up")),
    Fold("language", "mlp.up", ("mlp.down",)),
)
# GELU stands between up and down, and no scale passes through it.
SIGLIP = (
    Fold("vision", "norm1", ("attention.q", "attention.k", "attention.v")),
    Fold("vision", "attention.v", ("attention.o",)),
    Fold("vision", "norm2", ("mlp.up",)),
)
# Keys are normalised values plus positions: scales of the norm before them would have to reach the positions too.
RESAMPLER = (
    Fold("projector", "attention.qkv", ("attention.o",), part=(2, 3)),
    Fold("projector", "norm_post", ("out",)),
)
