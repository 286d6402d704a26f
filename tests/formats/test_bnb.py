"""bitsandbytes' tensors, in the hands of bitsandbytes."""

import json
from pathlib import Path

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from bitsandbytes.functional import QuantState
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.bnb.packing import pack, unpack
from mcpmq.grids import codebook, dequantize
from mcpmq.rounding.rtn import quantize
from mcpmq.scheme import CODEBOOKS, CodebookScheme, IntegerScheme
from tests.hf_tools import hf_artifact, parts_in, same_weight, tensors_in

DEVICE = torch.device("cpu")


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CODEBOOKS), st.integers(1, 40), st.integers(1, 9))
def test_bitsandbytes_reads_the_very_values(name: str, rows: int, groups: int) -> None:
    """Dequantized by bitsandbytes in float32: NF4 to the bit, FP4 as near as its own table on a CPU is rounded."""
    weight = codebook.quantize([torch.randn(rows, groups * 64)], rows, CodebookScheme(name))
    parts = pack(weight, "float32")
    state = QuantState.from_dict({key: part for key, part in parts.items() if key != "weight"}, DEVICE)
    values = bitsandbytes.dequantize_4bit(parts["weight"], state)

    if name == "nf4":
        assert torch.equal(values, dequantize(weight))
    torch.testing.assert_close(values, dequantize(weight), rtol=0.01, atol=1e-4)
    assert same_weight(unpack(pack(weight, "bfloat16"), CodebookScheme(name)), weight)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_parts_are_named_and_shaped_as_bitsandbytes_saves_them(name: str) -> None:
    """Every name, dtype and shape that `QuantState` has, and the same JSON beside the mean of the scales."""
    values = torch.randn(48, 320).bfloat16()
    parts = pack(codebook.quantize([values], 48, CodebookScheme(name)), "bfloat16")
    packed, state = bitsandbytes.quantize_4bit(values, quant_type=name, compress_statistics=True)
    theirs = {"weight": packed, **{f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}}
    stated = f"weight.quant_state.bitsandbytes__{name}"
    ours, others = (json.loads(bytes(held[stated].tolist())) for held in (parts, theirs))

    assert {key: (part.dtype, part.shape) for key, part in parts.items() if key != stated} == {
        key: (part.dtype, part.shape) for key, part in theirs.items() if key != stated
    }
    assert ours.pop("nested_offset") == pytest.approx(others.pop("nested_offset"), rel=1e-6)
    assert ours == others


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300))
def test_rows_of_eight_bits(rows: int, columns: int) -> None:
    """Signed codes and the largest magnitude of every row, whatever its length; read by bitsandbytes and by us."""
    weight = quantize(torch.randn(rows, columns), IntegerScheme(8, None))
    parts = pack(weight, "bfloat16")

    torch.testing.assert_close(bitsandbytes.int8_vectorwise_dequant(parts["weight"], parts["SCB"]), dequantize(weight))
    assert same_weight(unpack(parts, IntegerScheme(8, None)), weight)


def test_config_says_how_to_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Type, double quantization, what is computed in, which modules are wide."""
    schemes = {"language.*": "nf4", "vision.layers.1.attention.q": "nf4"}
    quantized, artifact = hf_artifact(tiny_checkpoint, tmp_path, "bnb", **schemes)
    said = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    tensors = tensors_in(artifact)

    assert said["quant_method"] == "bitsandbytes"
    assert (said["load_in_4bit"], said["load_in_8bit"], said["bnb_4bit_use_double_quant"]) == (True, False, True)
    assert (said["bnb_4bit_quant_type"], said["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")
    assert "vpm.encoder.layers.0" in said["llm_int8_skip_modules"]
    assert "vpm.encoder.layers.1.mlp" in said["llm_int8_skip_modules"]
    assert "vpm" not in said["llm_int8_skip_modules"]
    parts = parts_in(tensors, "vpm.encoder.layers.1.self_attn.q_proj")
    bias = parts.pop("bias")
    assert bias.dtype == torch.bfloat16
    assert same_weight(unpack(parts, CodebookScheme("nf4")), quantized.load("vision.layers.1.attention.q"))
