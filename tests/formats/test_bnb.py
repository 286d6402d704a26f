"""The bitsandbytes format: packed tensors, compared with bitsandbytes itself, and its configuration."""

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
from tests.hf_tools import export_hf_artifact, load_tensors, module_tensors, same_weight

DEVICE = torch.device("cpu")


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CODEBOOKS), st.integers(1, 40), st.integers(1, 9))
def test_bitsandbytes_dequantizes_to_the_same_values(name: str, rows: int, groups: int) -> None:
    """bitsandbytes dequantizes NF4 exactly, and FP4 within the rounding of its CPU table."""
    weight = codebook.quantize([torch.randn(rows, groups * 64)], rows, CodebookScheme(name))
    parts = pack(weight, "float32")
    state = QuantState.from_dict({key: part for key, part in parts.items() if key != "weight"}, DEVICE)
    values = bitsandbytes.dequantize_4bit(parts["weight"], state)

    if name == "nf4":
        assert torch.equal(values, dequantize(weight))
    torch.testing.assert_close(values, dequantize(weight), rtol=0.01, atol=1e-4)
    assert same_weight(unpack(pack(weight, "bfloat16"), CodebookScheme(name)), weight)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_tensors_are_those_that_bitsandbytes_saves(name: str) -> None:
    """Names, dtypes and shapes equal those of `QuantState`, and so does its JSON up to the rounding of the offset."""
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
def test_int8_rows_read_back_exactly(rows: int, columns: int) -> None:
    """bitsandbytes dequantizes int8 rows of any length exactly, and unpack inverts pack."""
    weight = quantize(torch.randn(rows, columns), IntegerScheme(8, None))
    parts = pack(weight, "bfloat16")

    torch.testing.assert_close(bitsandbytes.int8_vectorwise_dequant(parts["weight"], parts["SCB"]), dequantize(weight))
    assert same_weight(unpack(parts, IntegerScheme(8, None)), weight)


def test_config_has_the_scheme_and_the_unquantized_modules(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """config.json has the quantization type, double quantization, the compute dtype and the unquantized modules."""
    schemes = {"language.*": "nf4", "vision.layers.1.attention.q": "nf4"}
    quantized, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, "bnb", **schemes)
    config = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    tensors = load_tensors(artifact)

    assert config["quant_method"] == "bitsandbytes"
    assert (config["load_in_4bit"], config["load_in_8bit"], config["bnb_4bit_use_double_quant"]) == (True, False, True)
    assert (config["bnb_4bit_quant_type"], config["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")
    assert "vpm.encoder.layers.0" in config["llm_int8_skip_modules"]
    assert "vpm.encoder.layers.1.mlp" in config["llm_int8_skip_modules"]
    assert "vpm" not in config["llm_int8_skip_modules"]
    parts = module_tensors(tensors, "vpm.encoder.layers.1.self_attn.q_proj")
    bias = parts.pop("bias")
    assert bias.dtype == torch.bfloat16
    assert same_weight(unpack(parts, CodebookScheme("nf4")), quantized.load("vision.layers.1.attention.q"))
