"""Rounding to nearest sends every scheme to its grid."""

import pytest
import torch

from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDERS
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme


@pytest.mark.parametrize("text", ["int4-g32", "int8-row", "int4-g64-asym", "q4_k", "q8_0", "iq4_nl"])
def test_every_kind_of_scheme_is_rounded(text: str) -> None:
    """The result says its scheme and dequantizes near the weight."""
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)

    rounded = ROUNDERS["rtn"](weight, scheme)

    assert rounded.scheme == scheme
    assert (dequantize(rounded) - weight).norm() < 0.15 * weight.norm()


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64-asym", "q4_k"])
def test_rows_are_rounded_alike_in_any_chunk(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding the memory changes no code."""
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    whole = ROUNDERS["rtn"](weight, scheme)

    monkeypatch.setattr("mcpmq.rounding.rtn.CHUNK_WEIGHTS", 600)
    chunked = ROUNDERS["rtn"](weight, scheme)

    assert torch.equal(chunked.codes, whole.codes)
    assert torch.equal(dequantize(chunked), dequantize(whole))
