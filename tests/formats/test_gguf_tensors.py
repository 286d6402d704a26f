"""What gguf-py reads from a file is, bit for bit, what the grids say the weight is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.gguf import resampler
from mcpmq.formats.gguf.names import LANGUAGE, file_type, names_of
from mcpmq.formats.gguf.packing import pack
from mcpmq.formats.gguf.tensors import INTEGER_TYPES, Slot
from mcpmq.grids import dequantize
from mcpmq.grids.ggml import ggml_type
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized
from mcpmq.rounding.rtn import quantize
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme, IntegerScheme
from tests.gguf_tools import exported, quantized_by, reader_of, values


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal values; a negative zero is a zero."""
    return one.shape == other.shape and bool(np.array_equal(one + 0.0, other + 0.0))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 200),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128, 256, None]),
    seed=st.integers(0, 2**16),
)
def test_integer_codes_of_any_shape_survive(rows: int, columns: int, bits: int, group: int | None, seed: int) -> None:
    """Symmetric groups of 32 and more, ragged or not, one block of zeros added: the same values, then zeros."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    coded = quantize(weight, IntegerScheme(bits, group))
    kind, width = INTEGER_TYPES[bits], -(-columns // 32) * 32 + 32

    read = gguf_dequantize(pack(coded, Slot("name", "source", (rows + 1, width), kind)), kind)

    assert same_bits(read[:rows, :columns], dequantize(coded).numpy())
    assert not read[rows:].any()
    assert not read[:, columns:].any()


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_blocks_of_ggml_are_written_as_they_are(name: str) -> None:
    """Every ggml scheme, with a block of zeros added on both sides."""
    block = GGML_BLOCKS[name][0]
    coded = quantize(torch.randn(3, 2 * block, generator=torch.Generator().manual_seed(0)), GgmlScheme(name))

    read = gguf_dequantize(pack(coded, Slot("name", "source", (4, 3 * block), ggml_type(name))), ggml_type(name))

    assert same_bits(read[:3, : 2 * block], dequantize(coded).numpy())
    assert not read[3:].any()
    assert not read[:, 2 * block :].any()


def expected(quantized: Quantized, name: str) -> np.ndarray:
    weight = quantized.load(name)
    return (dequantize(weight) if isinstance(weight, QTensor) else weight.float()).numpy()


def assert_whole_model_is_the_same(quantized: Quantized, folder: Path) -> None:
    artifact = exported(quantized, folder)
    readers = [reader_of(artifact, component) for component in ("language", "vision+projector")]
    places = {tensor.name: reader for reader in readers for tensor in reader.tensors}
    for name in quantized.specs:
        component = name.partition(".")[0]
        parts = names_of(name, resampler.SIGLIP_RESAMPLER.names if component in ("vision", "projector") else LANGUAGE)
        read = np.concatenate([values(places.pop(part), part) for part in parts])
        wanted = expected(quantized, name)
        held = tuple(slice(size) for size in wanted.shape)
        assert same_bits(read[held], wanted), name
        read[held] = 0
        # Not every grid has a zero to fill a last block with; its columns only ever meet activations that are zero.
        assert name.endswith(".mlp.down") or not read.any(), name
    assert places.keys() == {"resampler.pos_embed_k"}


@pytest.mark.parametrize(
    "scheme", ["keep", "f32", "f16", "int4-g32", "int4-g256", "int8-g32", "int8-row", "q8_0", "q4_1", "q5_0", "iq4_nl"]
)
def test_every_weight_of_a_model_survives(scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Fused, transposed and widened ones included, and nothing else is in the files."""
    assert_whole_model_is_the_same(quantized_by(tiny_checkpoint, tmp_path, _all=scheme), tmp_path)


@pytest.mark.parametrize("scheme", ["q4_k", "q5_k", "q6_k"])
def test_every_weight_of_a_model_survives_k_quants(scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """K-quants where 256 divides the columns, and on the vision FFN, which is widened to 256."""
    schemes = {"language__*": scheme, "embedding": scheme, "head": scheme, "vision__layers__*__mlp__down": scheme}
    assert_whole_model_is_the_same(quantized_by(tiny_checkpoint, tmp_path, **schemes), tmp_path)


def test_a_built_in_recipe_survives(tiny_quality: Quantized, tmp_path: Path) -> None:
    """Mixed types in one file."""
    assert_whole_model_is_the_same(tiny_quality, tmp_path)


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"q4_0": 10, "q8_0": 3}, "Q4_0"),
        ({"q4_k": 10, "q6_k": 3}, "Q4_K_M"),
        ({"q4_k": 10}, "Q4_K_S"),
        ({"q4_k": 10, "q4_0": 2}, "Q4_K_S"),
        ({"q5_k": 10, "q6_k": 3}, "Q5_K_M"),
        ({"q6_k": 10, "q4_k": 3}, "Q6_K"),
    ],
)
def test_the_type_of_most_weights_names_the_file(counts: dict[str, int], name: str) -> None:
    """As llama.cpp's own quantizer names its mixtures."""
    assert file_type((ggml_type(kind), count) for kind, count in counts.items()) == name
