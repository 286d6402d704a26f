"""Values that gguf-py reads from a file equal the dequantized weights bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.gguf import resampler
from mcpmq.formats.gguf.names import LANGUAGE_NAMES, gguf_names, mixture_name
from mcpmq.formats.gguf.packing import pack
from mcpmq.formats.gguf.tensors import INTEGER_TYPES, GgufTensor
from mcpmq.grids import dequantize
from mcpmq.grids.ggml import ggml_type
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.rounding.rtn import quantize
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme, IntegerScheme
from tests.gguf_tools import export_gguf, gguf_reader, quantize_with, tensor_values
from tests.tiny_families import TINY_FAMILIES


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether all values are equal; negative zero equals zero."""
    return one.shape == other.shape and bool(np.array_equal(one + 0.0, other + 0.0))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 200),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128, 256, None]),
    seed=st.integers(0, 2**16),
)
def test_integer_codes_of_any_shape_round_trip(
    rows: int, columns: int, bits: int, group: int | None, seed: int
) -> None:
    """Symmetric groups of 32 and more, ragged or not, read back equal, followed by the zeros of the padding."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    coded = quantize(weight, IntegerScheme(bits, group))
    kind, width = INTEGER_TYPES[bits], -(-columns // 32) * 32 + 32

    read = gguf_dequantize(pack(coded, GgufTensor("name", "source", (rows + 1, width), kind)), kind)

    assert same_bits(read[:rows, :columns], dequantize(coded).numpy())
    assert not read[rows:].any()
    assert not read[:, columns:].any()


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_ggml_blocks_round_trip(name: str) -> None:
    """Every ggml scheme reads back equal, followed by the zeros of the padding."""
    block = GGML_BLOCKS[name][0]
    coded = quantize(torch.randn(3, 2 * block, generator=torch.Generator().manual_seed(0)), GgmlScheme(name))

    read = gguf_dequantize(pack(coded, GgufTensor("name", "source", (4, 3 * block), ggml_type(name))), ggml_type(name))

    assert same_bits(read[:3, : 2 * block], dequantize(coded).numpy())
    assert not read[3:].any()
    assert not read[:, 2 * block :].any()


def expected(quantized: QuantizedModel, name: str) -> np.ndarray:
    weight = quantized.load(name)
    return (dequantize(weight) if isinstance(weight, QTensor) else weight.float()).numpy()


def assert_model_round_trips(quantized: QuantizedModel, folder: Path) -> None:
    artifact = export_gguf(quantized, folder)
    readers = [gguf_reader(artifact, component) for component in ("language", "vision+projector")]
    readers_by_name = {tensor.name: reader for reader in readers for tensor in reader.tensors}
    for name in quantized.specs:
        component = name.partition(".")[0]
        parts = gguf_names(
            name, resampler.SIGLIP_RESAMPLER.names if component in ("vision", "projector") else LANGUAGE_NAMES
        )
        read = np.concatenate([tensor_values(readers_by_name.pop(part), part) for part in parts])
        values = expected(quantized, name)
        unpadded = tuple(slice(size) for size in values.shape)
        assert same_bits(read[unpadded], values), name
        read[unpadded] = 0
        # Not every type can pad the last block with exact zeros; these columns multiply activations of zero.
        assert name.endswith(".mlp.down") or not read.any(), name
    assert readers_by_name.keys() == {"resampler.pos_embed_k"}


@pytest.mark.parametrize(
    "scheme", ["keep", "f32", "f16", "int4-g32", "int4-g256", "int8-g32", "int8-row", "q8_0", "q4_1", "q5_0", "iq4_nl"]
)
def test_every_weight_of_a_model_round_trips(scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Fused, transposed and padded weights included; the files have no other tensors."""
    assert_model_round_trips(quantize_with(tiny_checkpoint, tmp_path, _all=scheme), tmp_path)


@pytest.mark.parametrize("scheme", ["q4_k", "q5_k", "q6_k", "iq4_xs", "q3_k", "q2_k", "iq3_s"])
def test_every_weight_of_a_model_round_trips_in_large_blocks(
    scheme: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """K-quants and `iq4_xs` need columns that are a multiple of 256; the vision FFN is padded to 256."""
    schemes = {"language__*": scheme, "embedding": scheme, "head": scheme, "vision__layers__*__mlp__down": scheme}
    assert_model_round_trips(quantize_with(tiny_checkpoint, tmp_path, **schemes), tmp_path)


def test_a_built_in_recipe_round_trips(tiny_quality: QuantizedModel, tmp_path: Path) -> None:
    """One file may have several types."""
    assert_model_round_trips(tiny_quality, tmp_path)


def test_rope_rows_are_permuted_within_each_head(tmp_path: Path) -> None:
    """llama.cpp rotates adjacent rows; grouped-query attention has fewer key heads than query heads."""
    tiny = next(tiny for tiny in TINY_FAMILIES if tiny.name == "minicpm-v-2.5")
    quantized = quantize_with(tiny.build(tmp_path / "tiny"), tmp_path, _all="f32")
    shape, reader = quantized.architecture.language, gguf_reader(export_gguf(quantized, tmp_path), "language")
    assert shape.num_kv_heads < shape.num_heads

    for name, heads in {"q": shape.num_heads, "k": shape.num_kv_heads}.items():
        weight, half = expected(quantized, f"language.layers.0.attention.{name}"), shape.head_dim // 2
        rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
        assert same_bits(tensor_values(reader, f"blk.0.attn_{name}.weight"), weight[rows])


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"q4_0": 10, "q8_0": 3}, "Q4_0"),
        ({"q4_k": 10, "q6_k": 3}, "Q4_K_M"),
        ({"q4_k": 10}, "Q4_K_S"),
        ({"q4_k": 10, "q4_0": 2}, "Q4_K_S"),
        ({"q5_k": 10, "q6_k": 3}, "Q5_K_M"),
        ({"q6_k": 10, "q4_k": 3}, "Q6_K"),
        ({"iq4_xs": 10, "q6_k": 3}, "IQ4_XS"),
        ({"iq3_s": 10, "q6_k": 3}, "IQ3_S"),
        ({"q2_k": 10, "q3_k": 3}, "Q2_K"),
        ({"q3_k": 10, "q4_k": 3}, "Q3_K_M"),
        ({"q3_k": 10}, "Q3_K_S"),
    ],
)
def test_the_most_frequent_type_names_the_mix(counts: dict[str, int], name: str) -> None:
    """Names are those of llama-quantize."""
    assert mixture_name((ggml_type(kind), count) for kind, count in counts.items()) == name
