"""The GPTQ format: packed tensors, compared with the definition of the layout, and its configuration."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.gptq import checkpoint_format
from mcpmq.formats.gptq.packing import pack, unpack
from mcpmq.grids import dequantize
from mcpmq.scheme import IntegerScheme
from tests.hf_tools import code_at, export_hf_artifact, load_tensors, module_tensors, same_weight
from tests.onnx_tools import random_weight

GROUP_SIZES = (32, 64, 128, None)
SCHEMES = [IntegerScheme(bits, group, even) for bits in (4, 8) for group in GROUP_SIZES for even in (True, False)]
MODULE = "llm.model.layers.0.mlp.down_proj"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(1, 3))
def test_packed_tensors_dequantize_to_the_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """The value (code - zero) * scale equals the weight; `gptq` stores zero - 1."""
    rows, columns = 8 * rows, (scheme.group_size or 16) * groups
    weight = random_weight(scheme, rows, columns)
    parts, bits = pack(weight, "bfloat16"), scheme.bits
    below = 1 if checkpoint_format(scheme) == "gptq" else 0
    values = torch.empty(rows, columns)
    for row in range(0, rows, 3):
        for column in range(columns):
            group = int(parts["g_idx"][column])
            zero = (code_at(parts["qzeros"][group], row, bits) + below) % (1 << bits)
            code = code_at(parts["qweight"][:, row], column, bits)
            values[row, column] = (code - zero) * parts["scales"][group, row].float()

    assert torch.equal(values[::3], dequantize(weight)[::3])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 5))
def test_unpack_inverts_pack(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Codes, scales and zero points are equal after packing and unpacking."""
    weight = random_weight(scheme, 8 * rows, (scheme.group_size or 8) * groups)

    assert same_weight(unpack(pack(weight, "float16"), scheme), weight)


def test_asymmetric_schemes_use_gptq_v2() -> None:
    """A zero point of 0 is stored as 0 in `gptq_v2`; `gptq` would store -1 and change the neighboring zero point."""
    scheme = IntegerScheme(4, None, symmetric=False)
    weight = random_weight(scheme, 8, 16)
    assert weight.zero_point is not None
    weight.zero_point[:] = 0

    assert checkpoint_format(scheme) == "gptq_v2"
    assert pack(weight, "float32")["qzeros"].tolist() == [[0]]
    assert pack(random_weight(IntegerScheme(4, None), 8, 16), "float32")["qzeros"].tolist() == [[0x77777777]]


def test_unquantized_modules_are_listed_for_every_loader(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """vLLM and gptqmodel get patterns of unquantized modules, transformers the packed modules of a layer."""
    schemes = {"language.*": "int4-g64", "language.*.mlp.*": "keep"}
    _, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, "gptq", **schemes)
    config = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]

    assert config["block_name_to_quantize"] == "llm.model.layers"
    assert config["modules_in_block_to_quantize"] == [attention]
    assert any(re.match(pattern[2:], "llm.model.layers.1.mlp.up_proj") for pattern in config["dynamic"])
    assert not any(re.match(pattern[2:], "llm.model.layers.1.self_attn.q_proj") for pattern in config["dynamic"])


@pytest.mark.parametrize(
    ("scheme", "bits", "group_size", "sym"), [("int4-g64", 4, 64, True), ("int8-row-asym", 8, -1, False)]
)
def test_config_has_the_scheme_and_the_unquantized_modules(
    scheme: str, bits: int, group_size: int, sym: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """config.json has the scheme and the unquantized modules, and quantize_config.json repeats them."""
    quantized, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, "gptq", **{"language.*": scheme})
    original = json.loads((artifact.path / "config.json").read_text())
    config = original.pop("quantization_config")

    assert original == quantized.config
    assert json.loads((artifact.path / "quantize_config.json").read_text()) == config
    assert (config["bits"], config["group_size"], config["sym"], config["desc_act"]) == (bits, group_size, sym, False)
    assert config["modules_to_not_convert"] == ["vpm", "resampler", "llm.model.embed_tokens", "llm.lm_head"]
    parts = module_tensors(load_tensors(artifact), MODULE)
    assert set(parts) == {"qweight", "qzeros", "scales", "g_idx"}
    parsed = quantized.scheme("language.layers.0.mlp.down")
    assert isinstance(parsed, IntegerScheme)
    assert same_weight(unpack(parts, parsed), quantized.load("language.layers.0.mlp.down"))
