"""LFM2, a language model with short convolutions in most layers: its keys in a raw config.json, and its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import HeadCount, HiddenSize, IntermediateSize, LayerCount, VocabSize
from mcpmq.families.family import TensorSpec
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.language_shape import LanguageShape, ShortConvolution
from mcpmq.families.tensors import layer_shapes, matrix_specs

LAYER_NAMES = {
    "attention.q": "self_attn.q_proj",
    "attention.norm_q": "self_attn.q_layernorm",
    "attention.k": "self_attn.k_proj",
    "attention.norm_k": "self_attn.k_layernorm",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
}
MLP_NAMES = {"mlp.gate": "feed_forward.w1", "mlp.up": "feed_forward.w3", "mlp.down": "feed_forward.w2"}


class LfmConfig(LanguageConfig):
    """Additional keys; defaults are those of the transformers class."""

    default_rope_theta: ClassVar[float] = 1000000.0
    hidden_size: HiddenSize = 2560
    num_hidden_layers: LayerCount = 32
    num_attention_heads: HeadCount = 32
    num_key_value_heads: HeadCount = 8
    intermediate_size: IntermediateSize = 12288
    vocab_size: VocabSize = 65536
    max_position_embeddings: PositiveInt = 128000
    norm_eps: PositiveFloat = 1e-5
    conv_L_cache: PositiveInt = 3  # noqa: N815 - name in the file; tokens of a kernel
    conv_bias: Literal[False] = False
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: PositiveFloat = 1.0
    block_multiple_of: PositiveInt = 256
    kinds: tuple[Literal["conv", "full_attention"], ...] = ()
    full_attn_idxs: tuple[int, ...] | None = None

    @classmethod
    def normalize(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of the language model in one flat form.

        Raises:
            CheckpointError: the rotary embedding type is not supported.
        """
        text = {**config, **(config.get("text_config") or {})}
        kinds = text.pop("layer_types", None) or ()
        size = text.get("block_ff_dim", text.get("intermediate_size"))
        sizes = {} if size is None else {"intermediate_size": size}
        tied = config.get("tie_embedding", config.get("tie_word_embeddings", True))
        flat = normalize_text_config({**text, "text_config": None, "tie_word_embeddings": tied})
        return {**flat, **sizes, "kinds": kinds}

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Layers with a convolution instead of attention."""
        if self.kinds:
            return tuple(layer for layer, kind in enumerate(self.kinds) if kind == "conv")
        attention = range(self.num_hidden_layers) if self.full_attn_idxs is None else self.full_attn_idxs
        return tuple(layer for layer in range(self.num_hidden_layers) if layer not in attention)

    @property
    def ffn_size(self) -> int:
        """Hidden size of the MLP, by the rules of the class."""
        size = self.intermediate_size
        if self.block_auto_adjust_ff_dim:
            size = int(self.block_ffn_dim_multiplier * int(2 * size / 3))
            size = -(-size // self.block_multiple_of) * self.block_multiple_of
        return size

    def to_shape(self, gguf_architecture: str, **differences: Any) -> LanguageShape:
        """Return the hyperparameters.

        Raises:
            CheckpointError: `layer_types` does not have one entry per layer, or no layer has attention.
        """
        count = self.num_hidden_layers
        if self.kinds and len(self.kinds) != count:
            raise CheckpointError(
                f"`config.json` has {count} layers but {len(self.kinds)} `layer_types`",
                "compare it with the published file",
            )
        if len(self.conv_layers) == count:
            raise CheckpointError("`config.json` has no layer with attention", "compare it with the published file")
        own = {
            "short_convolution": ShortConvolution(self.conv_layers, self.conv_L_cache),
            "intermediate_size": self.ffn_size,
            "norm_epsilon": self.norm_eps,
            "qk_norm": True,
        }
        return super().to_shape(gguf_architecture, **{**own, **differences})


def lfm_specs(shape: LanguageShape, prefix: str, head: str) -> Iterator[TensorSpec]:
    """Yield embedding, layers, final norm and head; `prefix` and `head` are hub names."""
    size, embedding = (shape.vocab_size, shape.hidden_size), f"{prefix}.embed_tokens.weight"
    names, alias = ((embedding, head), "head") if shape.tied_embeddings else ((), "")
    yield TensorSpec("embedding", embedding, size, "table", module_names=names, alias=alias)
    for layer in range(shape.num_layers):
        yield from _layer_specs(shape, layer, f"language.layers.{layer}", f"{prefix}.layers.{layer}")
    yield TensorSpec("language.norm", f"{prefix}.embedding_norm.weight", (shape.hidden_size,))
    if not shape.tied_embeddings:
        yield TensorSpec("head", head, size, "matrix")


def _layer_specs(shape: LanguageShape, layer: int, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes, hidden = layer_shapes(shape), shape.hidden_size
    yield TensorSpec(f"{name}.input_norm", f"{hub_name}.operator_norm.weight", (hidden,))
    if shape.is_convolution(layer):
        yield from _convolution_specs(shape, f"{name}.conv", f"{hub_name}.conv")
    else:
        for part, hub_part in LAYER_NAMES.items():
            full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
            if part in sizes:
                yield from matrix_specs(full, hub, sizes[part], bias=False)
            else:
                yield TensorSpec(full, f"{hub}.weight", (shape.head_dim,))
    yield TensorSpec(f"{name}.post_attention_norm", f"{hub_name}.ffn_norm.weight", (hidden,))
    for part, hub_part in MLP_NAMES.items():
        yield from matrix_specs(f"{name}.{part}", f"{hub_name}.{hub_part}", sizes[part], bias=False)


def _convolution_specs(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the gates and values of a convolution in one matrix, its kernel, and the output matrix."""
    hidden, convolution = shape.hidden_size, shape.short_convolution
    assert convolution is not None
    yield from matrix_specs(f"{name}.in", f"{hub_name}.in_proj", (3 * hidden, hidden), bias=False)
    yield TensorSpec(f"{name}.kernel", f"{hub_name}.conv.weight", (hidden, 1, convolution.kernel_size))
    yield from matrix_specs(f"{name}.out", f"{hub_name}.out_proj", (hidden, hidden), bias=False)
