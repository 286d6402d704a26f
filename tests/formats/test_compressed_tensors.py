"""The compressed-tensors format: packed tensors, compared with the definition and with the package itself."""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.compressed_tensors.packing import pack, unpack
from mcpmq.scheme import GROUP_SIZES, IntegerScheme
from tests.hf_tools import code_at, same_weight
from tests.onnx_tools import random_weight

SCHEMES = [IntegerScheme(bits, group) for bits in (4, 8) for group in (*GROUP_SIZES, None)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 70))
def test_packed_words_equal_those_of_the_package(scheme: IntegerScheme, rows: int, columns: int) -> None:
    """The package packs signed codes to the same words, also for rows of any length with one scale."""
    weight = random_weight(scheme, rows, columns * scheme.group_size if scheme.group_size else columns)
    parts, signed = pack(weight, "bfloat16"), (weight.codes.int() - (1 << (scheme.bits - 1))).to(torch.int8)

    assert torch.equal(parts["weight_packed"], pack_to_int32(signed, scheme.bits))
    assert torch.equal(unpack_from_int32(parts["weight_packed"], scheme.bits, torch.Size(weight.shape)), signed)
    assert code_at(parts["weight_packed"][0], weight.columns - 1, scheme.bits) == int(weight.codes[0, -1])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 70))
def test_unpack_inverts_pack(scheme: IntegerScheme, rows: int, columns: int) -> None:
    """Codes and scales are equal after packing and unpacking, also for rows that do not fill a word."""
    weight = random_weight(scheme, rows, columns * scheme.group_size if scheme.group_size else columns)

    assert same_weight(unpack(pack(weight, "float16"), scheme), weight)
