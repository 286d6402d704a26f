"""Types of the KV cache in llama.cpp: bytes of a context, and the widths of heads that quantized types need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from mcpmq.errors import EngineError
from mcpmq.families.language_shape import LanguageShape
from mcpmq.system.table import Row, Table, format_megabytes

BLOCK = 32  # values of a quantized type that share a scale; a block is inside of one head
# Id of ggml, and bytes of 32 values.
CACHE_TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (0, 128),
    "f16": (1, 64),
    "bf16": (30, 64),
    "q8_0": (8, 34),
    "q5_1": (7, 24),
    "q5_0": (6, 22),
    "q4_1": (3, 20),
    "q4_0": (2, 18),
    "iq4_nl": (20, 18),
}
UNQUANTIZED = ("f32", "f16", "bf16")
LISTED = ("f16", "q8_0", "q4_0")  # in tables
CONTEXT_PRESETS = (2048, 4096, 8192)  # tokens
SEPARATOR = "/"
FLOAT32_REASON = "the model computes with a cache that is not quantized"
OTHER_ENGINES = {
    "onnx": "the decoder graph gets and returns its cache in float32",
    "torch": FLOAT32_REASON,
    "dequantized": FLOAT32_REASON,
    "transformers": FLOAT32_REASON,
}


@dataclass(frozen=True, slots=True)
class KvCache:
    """The types of cached keys and values."""

    keys: str = "f16"  # the default of llama.cpp
    values: str = "f16"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `q8_0` for both, or `q8_0/q4_0` for keys and values.

        Raises:
            EngineError: llama.cpp has no such type.
        """
        keys, separator, values = text.partition(SEPARATOR)
        found = cls(keys, values if separator else keys)
        for name in (found.keys, found.values):
            if name not in CACHE_TYPES:
                raise EngineError(
                    f"`{name}` is not a type of the KV cache",
                    f"give one of {', '.join(CACHE_TYPES)}, or two as KEYS/VALUES",
                )
        return found

    def __str__(self) -> str:
        return self.keys if self.keys == self.values else f"{self.keys}{SEPARATOR}{self.values}"

    @property
    def ids(self) -> tuple[int, int]:
        """Return the ids of ggml."""
        return CACHE_TYPES[self.keys][0], CACHE_TYPES[self.values][0]

    @property
    def needs_flash_attention(self) -> bool:
        """Return whether llama.cpp supports the type of values with flash attention only."""
        return self.values not in UNQUANTIZED

    def nbytes(self, cached: tuple[int, int]) -> int:
        """Return the bytes of a number of cached key values and cached values."""
        sizes = (CACHE_TYPES[name][1] for name in (self.keys, self.values))
        return sum(count * size for count, size in zip(cached, sizes, strict=True)) // BLOCK

    def check_widths(self, key_width: int, value_width: int) -> None:
        """Check that every head has whole blocks.

        Raises:
            EngineError: the width of a head is not a multiple of the block of a quantized type.
        """
        for kind, name, width in (("key", self.keys, key_width), ("value", self.values, value_width)):
            if name not in UNQUANTIZED and width % BLOCK:
                raise EngineError(
                    f"the {kind} heads have {width} channels, not a multiple of the {BLOCK} of a block of `{name}`",
                    f"use one of {', '.join(UNQUANTIZED)}",
                )


F16_CACHE, F32_CACHE = KvCache(), KvCache("f32", "f32")


def head_widths(shape: LanguageShape) -> tuple[int, int]:
    """Return the channels of a key head and of a value head."""
    latent = shape.latent_attention
    return shape.head_dim, latent.v_head_dim if latent else shape.head_dim


def cached_per_token(shape: LanguageShape) -> tuple[int, int]:
    """Return the cached key values and values of one token, in all layers that have a KV cache."""
    without = shape.linear_attention or shape.short_convolution
    layers = shape.num_layers - (len(without.layers) if without else 0)
    keys, values = head_widths(shape)
    return layers * shape.num_kv_heads * keys, layers * shape.num_kv_heads * values


def check_cache(cache: KvCache | None, engine: str, widths: tuple[int, int]) -> None:
    """Check that an engine supports the requested types for heads with these channels.

    Raises:
        EngineError: it does not.
    """
    if cache is not None and engine in OTHER_ENGINES:
        raise EngineError(f"no KV cache of the type `{cache}`: {OTHER_ENGINES[engine]}", "give a GGUF artifact")
    if cache is not None:
        cache.check_widths(*widths)


def listed_types(shape: LanguageShape) -> list[str]:
    """Return the types for tables, without those that the heads do not fit."""
    fits = all(width % BLOCK == 0 for width in head_widths(shape))
    return [name for name in LISTED if fits or name in UNQUANTIZED]


def context_nbytes(shape: LanguageShape) -> dict[str, dict[int, int]]:
    """Return the bytes of full contexts by type and tokens."""
    per_token = {name: KvCache(name, name).nbytes(cached_per_token(shape)) for name in listed_types(shape)}
    return {name: {tokens: tokens * one for tokens in CONTEXT_PRESETS} for name, one in per_token.items()}


def context_table(nbytes: Mapping[str, Mapping[int, int]], divergences: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the bytes of full contexts by type, and the mean KLD in nats by group of types that were measured."""
    groups = list(dict.fromkeys(group for by_group in divergences.values() for group in by_group))
    rows: list[Row] = [(name, _cells(nbytes.get(name), groups, divergences.get(name, {}))) for name in nbytes]
    rows += [(name, _cells(None, groups, found)) for name, found in divergences.items() if name not in nbytes]
    columns = [f"{tokens:,} tokens" for tokens in CONTEXT_PRESETS]
    return Table("KV cache", [*columns, *(f"mean KLD, {group}" for group in groups)], rows)


def _cells(nbytes: Mapping[int, int] | None, groups: list[str], divergences: Mapping[str, float]) -> list[str]:
    sizes = [format_megabytes(nbytes[tokens]) if nbytes else "" for tokens in CONTEXT_PRESETS]
    return sizes + [f"{divergences[group]:.4f}" if group in divergences else "" for group in groups]
