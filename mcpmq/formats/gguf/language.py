"""The language model's file: what llama.cpp must know of it before the tensors."""

from gguf import GGUFWriter

from mcpmq.formats.declared import Declared
from mcpmq.formats.gguf.tokenizer import add_tokenizer

COMPONENTS = {"embedding", "language", "head"}


def add_metadata(writer: GGUFWriter, quantized: Declared) -> None:
    """Sizes of the language model, and the tokenizer.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer.
    """
    shape = quantized.architecture.language
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_theta)
    add_tokenizer(writer, quantized.path, shape.vocabulary)
