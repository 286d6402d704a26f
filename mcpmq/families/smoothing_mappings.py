"""Where scales may move between neighbours, for kinds of blocks that many families are made of."""

from dataclasses import replace

from mcpmq.families.family import Fold

# Gated FFN: down sees gate's activation times up, so up alone may take the scales.
GATED_FFN = (
    Fold("language", "post_attention_norm", ("mlp.gate", "mlp.up")),
    Fold("language", "mlp.up", ("mlp.down",)),
)
# Norms of queries and keys, rotation, and gates of heads leave every channel of the values alone.
GATED_LANGUAGE = (
    Fold("language", "input_norm", ("attention.q", "attention.k", "attention.v")),
    Fold("language", "attention.v", ("attention.o",)),
    *GATED_FFN,
)
# Of few numbers are made what all heads look for, keys and values; no head's values lie together in kv_b.
LATENT_LANGUAGE = (
    Fold("language", "input_norm", ("attention.q_a", "attention.kv_a")),
    Fold("language", "attention.norm_q_a", ("attention.q_b",)),
    Fold("language", "attention.norm_kv_a", ("attention.kv_b",)),
    *GATED_FFN,
)
# Between the matrices of linear attention stand a convolution and SiLU: only the norm before them all gives scales.
HYBRID_LANGUAGE = tuple(
    replace(fold, centred=fold.source.endswith("norm"))
    for fold in (
        Fold("language", "input_norm", ("linear.qkv", "linear.z", "linear.a", "linear.b")),
        *GATED_LANGUAGE,
    )
)
# GELU stands between up and down, and no scale passes through it.
SIGLIP = (
    Fold("vision", "norm1", ("attention.q", "attention.k", "attention.v")),
    Fold("vision", "attention.v", ("attention.o",)),
    Fold("vision", "norm2", ("mlp.up",)),
)
# What norms squares of patches that lie together; the merger inside the tower begins as a layer does.
SIGLIP_MERGERS = (
    Fold("vision", "norm2", ("up",)),
    Fold("projector", "norm", ("up",)),
)
# Keys are normalised values plus positions: scales of the norm before them would have to reach the positions too.
RESAMPLER = (
    Fold("projector", "attention.qkv", ("attention.o",), part=(2, 3)),
    Fold("projector", "norm_post", ("out",)),
)
# The norm of the merger sees single patches, and up four of them side by side: no scale is one column's.
QWEN_VISION = (
    Fold("vision", "norm1", ("attention.qkv",)),
    Fold("vision", "attention.qkv", ("attention.o",), part=(2, 3)),
    Fold("vision", "norm2", ("mlp.up",)),
)
GATED_QWEN_VISION = (
    *QWEN_VISION[:2],
    Fold("vision", "norm2", ("mlp.gate", "mlp.up")),
    Fold("vision", "mlp.up", ("mlp.down",)),
)
