"""Types of the KV cache: sizes as those of ggml, conditions, and tables."""

from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.gguf.language_metadata import read_head_widths
from mcpmq.formats.kv_cache import (
    CACHE_TYPES,
    KvCache,
    cached_per_token,
    check_cache,
    context_nbytes,
    context_table,
    head_widths,
)
from tests.tiny_families import TINY_FAMILIES


def _shape(family: str, folder: Path) -> LanguageShape:
    built = next(one for one in TINY_FAMILIES if one.name == family).build(folder)
    return Checkpoint.open(built).architecture.language


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_ids_and_sizes_are_those_of_ggml(name: str) -> None:
    """The id selects the type of this name, and 32 values take the bytes of its blocks."""
    number, nbytes = CACHE_TYPES[name]
    kind = GGMLQuantizationType(number)
    values, block_nbytes = GGML_QUANT_SIZES[kind]

    assert kind.name.lower() == name
    assert nbytes * values == block_nbytes * 32


@pytest.mark.parametrize(
    ("text", "keys", "values", "needs_flash_attention"),
    [("q8_0", "q8_0", "q8_0", True), ("q8_0/f16", "q8_0", "f16", False), ("f32/iq4_nl", "f32", "iq4_nl", True)],
)
def test_one_or_two_types_are_read(text: str, keys: str, values: str, needs_flash_attention: bool) -> None:
    """Keys and values have one type or two; quantized values need flash attention."""
    cache = KvCache.parse(text)

    assert (cache.keys, cache.values, cache.needs_flash_attention) == (keys, values, needs_flash_attention)
    assert str(cache) == text


@pytest.mark.parametrize("text", ["", "int4", "q8_0/", "/q8_0", "q4_k", "q8_0/q8_0/q8_0"])
def test_other_types_are_rejected(text: str) -> None:
    """The hint lists the types of llama.cpp."""
    with pytest.raises(EngineError, match="not a type of the KV cache") as caught:
        KvCache.parse(text)

    assert "q5_1" in caught.value.hint


def test_heads_must_have_whole_blocks() -> None:
    """A quantized type needs a multiple of 32 channels, of keys and values separately; F16 any number."""
    for cache, widths in ((KvCache("q8_0", "f16"), (64, 80)), (KvCache("f16", "f16"), (80, 80))):
        cache.check_widths(*widths)
    with pytest.raises(EngineError, match="value heads have 80 channels, not a multiple of the 32 .* `q4_0`"):
        KvCache("f16", "q4_0").check_widths(64, 80)
    with pytest.raises(EngineError, match="key heads have 48 channels"):
        check_cache(KvCache("q8_0", "q8_0"), "gguf", (48, 64))


@pytest.mark.parametrize("engine", ["onnx", "torch", "dequantized", "transformers"])
def test_other_engines_have_no_choice(engine: str) -> None:
    """The error has the reason; without a request nothing is checked."""
    check_cache(None, engine, (0, 0))
    with pytest.raises(EngineError, match="no KV cache of the type `f16`: the "):
        check_cache(KvCache(), engine, (64, 64))


def test_only_layers_with_attention_have_a_cache(tmp_path: Path) -> None:
    """A hybrid model of two layers caches keys and values of one."""
    shape = _shape("minicpm-v-4.6", tmp_path)

    assert shape.num_layers == 2
    assert cached_per_token(shape) == (shape.num_kv_heads * shape.head_dim,) * 2


def test_latent_attention_has_narrower_values(tmp_path: Path) -> None:
    """llama.cpp caches the decompressed keys and values of MiniCPM3, whose widths differ."""
    shape = _shape("minicpm3", tmp_path)
    keys, values = head_widths(shape)
    assert shape.latent_attention
    assert (keys, values) == (shape.head_dim, shape.latent_attention.v_head_dim)

    assert cached_per_token(shape) == tuple(shape.num_layers * shape.num_kv_heads * width for width in (keys, values))
    assert keys != values


def test_bytes_of_full_contexts(tiny_checkpoint: Path) -> None:
    """Two layers with two heads of 64 channels: 256 keys and 256 values of a token, in blocks of 32."""
    nbytes = context_nbytes(Checkpoint.open(tiny_checkpoint).architecture.language)

    assert {name: sizes[4096] // 4096 for name, sizes in nbytes.items()} == {"f16": 1024, "q8_0": 544, "q4_0": 288}
    assert list(nbytes["q8_0"]) == [2048, 4096, 8192]


def test_the_table_has_sizes_and_measured_divergences(tiny_checkpoint: Path) -> None:
    """A measured type that is not listed gets a row without sizes."""
    nbytes = context_nbytes(Checkpoint.open(tiny_checkpoint).architecture.language)

    table = context_table(nbytes, {"q8_0": {"image": 0.0123, "text": 0.5}, "q5_1": {"image": 0.2}})

    assert dict(table.rows) == {
        "f16": ["2.10 MB", "4.19 MB", "8.39 MB", "", ""],
        "q8_0": ["1.11 MB", "2.23 MB", "4.46 MB", "0.0123", "0.5000"],
        "q4_0": ["0.59 MB", "1.18 MB", "2.36 MB", "", ""],
        "q5_1": ["", "", "", "0.2000", ""],
    }


def test_head_widths_of_a_language_model_file(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """They are read from the header; another file is an error."""
    [language] = tiny_exports[0].component_files("language")

    assert read_head_widths(language) == (64, 64)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match="not a GGUF file"):
        read_head_widths(tmp_path / "other.gguf")


def test_the_manifest_has_the_sizes(tiny_exports: list[Artifact]) -> None:
    """Those of GGUF artifacts; ONNX graphs have one type."""
    gguf, onnx = (artifact.manifest.kv_cache_nbytes for artifact in tiny_exports)

    assert gguf
    assert (gguf["q4_0"][8192], onnx) == (288 * 8192, None)
